import errno
import os
import signal
from pathlib import Path

import pytest

from foundation.files import WriteError, remove_partial
from training.distillation.checkpoints import (
    check_same_recipe,
    list_checkpoints,
    newest_checkpoint,
    read_state,
    save_checkpoint,
)
from training.recipe import RecipeError, load_recipe


def write_weights(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w")


def save(folder: Path, step: int, write=write_weights, num_kept: int = 2) -> Path:
    return save_checkpoint(folder, {"step": step}, write, num_kept)


def test_newest_is_found_and_oldest_are_removed(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 90, 100):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000090", "step_00000100"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest) == {"step": 100}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_failed_write_leaves_the_previous_one_and_says_so(tmp_path: Path, error: Exception) -> None:
    save(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise error

    with pytest.raises(WriteError, match=r"Cannot write .*step_00000002.*intact") as raised:
        save(tmp_path, 2, fail)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def kill_this_process(*paths: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["while writing", "before the move"])
def test_sigkill_leaves_the_previous_one_the_newest(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("foundation.files.os.replace", kill_this_process)
        save(tmp_path, 2, kill_this_process if moment == "while writing" else write_weights)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step_00000001"
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_other_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    saved = recipe.to_dict()
    check_same_recipe(tmp_path, saved, recipe)
    check_same_recipe(tmp_path, saved, load_recipe("demo", ["checkpoints.every_steps=7", "logging.every_steps=1"]))
    with pytest.raises(RecipeError, match=r"belongs to another recipe \(optimizer.learning_rate: .* -> 1.0\)"):
        check_same_recipe(tmp_path, saved, load_recipe("demo", ["optimizer.learning_rate=1"]))
