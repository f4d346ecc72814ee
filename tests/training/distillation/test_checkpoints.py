import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe

from foundation.files import WriteError, remove_partial
from training.distillation.checkpoints import (
    CheckpointError,
    check_fits,
    check_same_recipe,
    list_checkpoints,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    warn_of_other_data,
)
from training.recipe import Recipe, RecipeError, load_recipe


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


def test_teachers_in_another_order_are_refused(tmp_path: Path) -> None:
    saved = small_recipe("semantic", "segmenter").to_dict()
    with pytest.raises(RecipeError, match=r"\(order of teachers: semantic, segmenter -> segmenter, semantic\): resume"):
        check_same_recipe(tmp_path, saved, small_recipe("segmenter", "semantic"))


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    recipe = small_recipe("semantic")
    saved = recipe.to_dict()
    del saved["mesa"], saved["optimizer"]["clip_norm"], saved["teachers"][0]["summary_weight"]
    check_same_recipe(tmp_path, saved, recipe)
    changed = Recipe(**recipe.to_dict() | {"mesa": {"weight": 0.5}})
    with pytest.raises(RecipeError, match=r"\(mesa.weight: 0.0 -> 0.5\)"):
        check_same_recipe(tmp_path, saved, changed)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    changed = {"cut": content[:-1], "emptied": b"", "garbage": bytes(len(content)), "gone": None}[kind]
    path.unlink() if changed is None else path.write_bytes(changed)


@pytest.mark.parametrize("name", ["weights", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["cut", "emptied", "garbage", "gone"])
def test_a_damaged_checkpoint_is_passed_over_in_one_line(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newest = (save(tmp_path, step) for step in (3, 6))
    damage(newest / name, kind)
    assert newest_checkpoint(tmp_path) == older
    (line,) = caplog.messages
    assert line.startswith(f"'{newest / name}' ")
    assert line.endswith(f"the run goes on from '{older}' instead")
    assert newest.is_dir()


def test_without_an_intact_checkpoint_one_line_names_all_and_nothing_goes(tmp_path: Path) -> None:
    checkpoints = [save(tmp_path, step) for step in (3, 6)]
    damage(checkpoints[0] / "weights", "garbage")
    damage(checkpoints[1] / "state.json", "cut")
    with pytest.raises(CheckpointError, match="has no intact checkpoint") as raised:
        newest_checkpoint(tmp_path)
    message = str(raised.value)
    size = (checkpoints[1] / "state.json").stat().st_size
    assert f"'{checkpoints[1] / 'state.json'}' has {size} bytes instead of {size + 1}; " in message
    assert f"'{checkpoints[0] / 'weights'}' has another content than was written. Restore" in message
    assert "\n" not in message
    assert list_checkpoints(tmp_path) == checkpoints


def test_a_checkpoint_that_was_passed_over_does_not_push_out_intact_ones(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        save(tmp_path, step)
    damage(tmp_path / "step_00000009" / "weights", "emptied")
    save(tmp_path, 7)  # of a run that went on from step 6
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000006", "step_00000007"]


@pytest.mark.parametrize("changed", [{"head": torch.zeros(9)}, {}, {"head": torch.zeros(12), "other": torch.zeros(1)}])
def test_tensors_of_another_network_are_refused(changed: dict[str, torch.Tensor]) -> None:
    path = Path("step_00000001/student.safetensors")
    wanted = {"head": torch.zeros(12)}
    check_fits(path, {"head": torch.ones(12)}, wanted)
    with pytest.raises(CheckpointError, match=r"^'.*student.safetensors' is of another network \((head|other): .* -> "):
        check_fits(path, changed, wanted)


def test_other_data_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_other_data(Path("step_00000003"), "24 files, 9 bytes", "24 files, 9 bytes")
    assert caplog.messages == []
    warn_of_other_data(Path("step_00000003"), "24 files, 9 bytes", "14 files, 5 bytes")
    (line,) = caplog.messages
    assert line.startswith("'step_00000003' was trained on other data (24 files, 9 bytes -> 14 files, 5 bytes; names")
