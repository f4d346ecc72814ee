"""Checkpoints: written whole or not at all, damage found, read in parts, resumed exactly."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from two_forks import run_two_forks

from modeling_radio.core.files import WriteError, remove_partial
from modeling_radio.core.manifests import find_damage
from modeling_radio.core.ranks import rank_and_count
from modeling_radio.training.distillation import checkpoints
from modeling_radio.training.distillation.checkpoints import (
    CheckpointWriter,
    HostCopies,
    SavedTensors,
    check_allowed_changes,
    check_same_dealing,
    check_same_recipe,
    list_checkpoints,
    newest_checkpoint,
    read_state,
    writers_of,
)
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, load_recipe
from modeling_radio.training.views.dealing import DEALING


def write_weights(path: Path) -> None:
    path.write_bytes(b"w")


def save(
    folder: Path, step: int, write: Callable[[Path], object] = write_weights, num_kept: int = 2, name: str = "weights"
) -> Path:
    """Write the checkpoint of a step to its end and return its folder."""
    writer = CheckpointWriter(folder, num_kept)
    writer.begin({"step": step}, {name: write})
    writer.finish()
    return folder / f"step_{step:08d}"


WHOLE = {
    "matrix": torch.arange(10.0).view(5, 2),
    "row": torch.arange(3.0).view(1, 3),  # the second of two ranks has none of it
    "bias": torch.arange(4).to(torch.bfloat16),
    "count": torch.tensor(7),
    "plain": torch.arange(3.0).double(),
}
SHARDED = ("matrix", "row", "bias")


def write(folder: Path, tensors: dict[str, Tensor], rank: int = 0, num_ranks: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    for name, writer in writers_of("student", tensors, HostCopies(), rank=rank, num_ranks=num_ranks)[0].items():
        writer(folder / name)


def shard(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    return {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if name in SHARDED else tensor
        for name, tensor in tensors.items()
    }


def check_whole(folder: Path) -> None:
    saved = SavedTensors(folder, "student")
    assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in WHOLE.items()}
    for name, tensor in WHOLE.items():
        for like in (None, tensor):
            read = saved.read(name, like)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_whole_tensors_are_one_file_which_one_rank_writes(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, 0, 2)
    write(tmp_path, {"other": torch.zeros(1)}, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]
    check_whole(tmp_path)


@pytest.mark.parametrize(("part_bytes", "num_parts"), [(40, 2), (20, 4), (1, 5)])
def test_ranks_with_copies_share_what_is_large(
    part_bytes: int, num_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "PART_BYTES", part_bytes)
    written = []
    for rank in range(5):
        writers, following = writers_of("student", WHOLE, HostCopies(), rank=rank, num_ranks=5, first=3)
        assert following == 3 + num_parts
        written += [(name, rank) for name in writers]
        for name, writer in writers.items():
            writer(tmp_path / name)
    names = [f"student-{part + 1:05d}-of-{num_parts:05d}.safetensors" for part in range(num_parts)]
    assert set(written) <= {(name, (3 + part) % 5) for part, name in enumerate(names)}
    assert len(written) >= 2  # "matrix" alone fills several of the smallest parts
    check_whole(tmp_path)


def test_later_changes_are_not_written(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in WHOLE.items()}
    writers, _ = writers_of("student", tensors, HostCopies())
    for tensor in tensors.values():
        tensor.fill_(0)
    for name, writer in writers.items():
        writer(tmp_path / name)
    check_whole(tmp_path)


def test_memory_of_copies_is_kept_for_the_next_ones_that_fit() -> None:
    copies = HostCopies()
    first = copies.take("student", {"a": torch.ones(2, 3).T, "b": torch.ones(4)})
    second = copies.take("student", {"a": torch.zeros(3, 2), "b": torch.zeros(5)})
    assert [tensor.tolist() for tensor in second.values()] == [[[0.0, 0.0]] * 3, [0.0] * 5]
    assert second["a"].is_contiguous()
    assert second["a"] is first["a"]
    assert second["b"] is not first["b"]
    assert copies.take("ema", {"a": torch.ones(3, 2)})["a"] is not first["a"]


def test_parts_of_two_ranks_are_read_by_one_and_by_two(tmp_path: Path) -> None:
    folder = tmp_path / "saved"

    def check() -> None:
        sharded = shard(WHOLE)
        with CommDebugMode() as exchanges:
            write(folder, sharded, *rank_and_count())
        assert exchanges.get_total_counts() == 0
        distributed.barrier()
        saved = SavedTensors(folder, "student")
        for name, tensor in sharded.items():
            read = saved.read(name, tensor)
            assert read.shape == tensor.shape
            if isinstance(tensor, DTensor):
                assert isinstance(read, DTensor)
                assert torch.equal(read.to_local(), tensor.to_local())

    run_two_forks(check, tmp_path)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "student-00001-of-00002.safetensors",
        "student-00002-of-00002.safetensors",
    ]
    check_whole(folder)


@pytest.mark.parametrize("part_bytes", [checkpoints.PART_BYTES, 20])
def test_shards_that_are_copied_too_are_written_once(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a mesh of two by one: each rank has all, as where groups of ranks have a copy each."""
    monkeypatch.setattr(checkpoints, "PART_BYTES", part_bytes)
    folder = tmp_path / "saved"

    def check() -> None:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
        tensors = {name: distribute_tensor(each, mesh, [Replicate(), Shard(0)]) for name, each in whole.items()}
        write(folder, {**WHOLE, **tensors}, *rank_and_count())

    whole = {name: WHOLE[name] for name in SHARDED}
    run_two_forks(check, tmp_path)
    assert len(names_in(folder)) == (2 if part_bytes == 20 else 1)
    check_whole(folder)


def test_newest_is_found_and_oldest_are_removed(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 90, 100):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000090", "step_00000100"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest) == {"step": 100}


def test_changes_that_are_allowed_are_returned(tmp_path: Path) -> None:
    saved = load_recipe("demo").to_dict()
    recipe = load_recipe("demo", ["optimizer.learning_rate=1", "data.source=demo-permissive", "data.num_images=7"])
    with pytest.raises(RecipeError, match=r"--allow-changes data.source,data.num_images`"):
        check_same_recipe(tmp_path, saved, recipe, ["optimizer.learning_rate"])
    accepted = check_same_recipe(tmp_path, saved, recipe, ["optimizer.learning_rate", "data", "mesa"])
    assert [change.partition(":")[0] for change in accepted] == [
        "data.source",
        "data.num_images",
        "optimizer.learning_rate",
    ]
    assert check_same_recipe(tmp_path, recipe.to_dict(), recipe, ["data"]) == []


def test_a_run_of_packs_keeps_to_its_way_of_dealing(tmp_path: Path) -> None:
    packs, squares = (load_recipe(name, ["data.source=images"]) for name in ("demo_full", "demo"))
    for saved, recipe in [(DEALING, packs), (None, squares)]:
        check_same_dealing(tmp_path, saved, recipe)
    with pytest.raises(RecipeError, match="token_budget"):
        check_same_dealing(tmp_path, None, packs)


def test_what_is_a_share_of_the_run_follows_its_steps(tmp_path: Path) -> None:
    shares = ["mesa.weight=0.5", "mesa.start_step=0.25"]
    saved, recipe = (load_recipe("demo", [*shares, f"schedule.num_steps={count}"]) for count in (80, 100))
    with pytest.raises(RecipeError, match=r"--allow-changes schedule.num_steps`"):
        check_same_recipe(tmp_path, saved.to_dict(), recipe)
    assert sorted(check_same_recipe(tmp_path, saved.to_dict(), recipe, ["schedule.num_steps"])) == [
        "mesa.start_step: 20 -> 25",
        "schedule.num_steps: 80 -> 100",
        "schedule.warmup_steps: 8 -> 10",
    ]
    in_steps = load_recipe("demo", [*shares, "schedule.num_steps=80", "mesa.start_step=20"])
    assert check_same_recipe(tmp_path, saved.to_dict(), in_steps) == []  # the same run in other words


def test_what_is_allowed_must_be_a_setting() -> None:
    check_allowed_changes(["data.source", "teachers.nanodet-g.kind", "mesa"], [load_recipe("demo")])
    with pytest.raises(RecipeError, match=r"^`allow_changes` .*'data.sorce'.*'data.source'"):
        check_allowed_changes(["data.sorce"], [load_recipe("demo")])


def test_weight_of_contrasts_may_change_but_not_begin(tmp_path: Path) -> None:
    saved = load_recipe("demo", ["contrastive.weight=0.1"]).to_dict()
    for weight, is_accepted in ((0.2, True), (0, False)):
        recipe = load_recipe("demo", [f"contrastive.weight={weight}"])
        if is_accepted:
            assert len(check_same_recipe(tmp_path, saved, recipe, ["contrastive"])) == 1
        else:
            with pytest.raises(RecipeError, match=r"\(contrastive.weight\)"):
                check_same_recipe(tmp_path, saved, recipe, ["contrastive"])


@pytest.mark.parametrize("change", ["partitions.low.name=renamed", "loss.features=cosine"])
def test_what_is_advised_can_be_followed(tmp_path: Path, change: str) -> None:
    """Also where only one of the two recipes has the setting."""
    plain, changed = load_recipe("demo"), load_recipe("demo", [change])
    for saved, recipe in ((plain, changed), (changed, plain)):
        with pytest.raises(RecipeError, match="--allow-changes ") as refused:
            check_same_recipe(tmp_path, saved.to_dict(), recipe)
        names = str(refused.value).partition("--allow-changes ")[2].partition("`")[0].split(",")
        check_allowed_changes(names, [recipe])
        assert check_same_recipe(tmp_path, saved.to_dict(), recipe, names)


def test_teachers_in_another_order_are_refused(tmp_path: Path) -> None:
    saved = small_recipe("semantic", "segmenter").to_dict()
    with pytest.raises(RecipeError, match=r"\(order of teachers: semantic, segmenter -> segmenter, semantic\)"):
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


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_waits_for_a_write_and_nothing_appears_before_its_end(tmp_path: Path) -> None:
    writer, may_write = CheckpointWriter(tmp_path, 2), threading.Event()
    state = {"step": 3}

    def write(path: Path) -> None:
        may_write.wait(30)
        write_weights(path)

    writer.begin(state, {"weights": write})
    state["step"] = 4  # the run goes on
    assert writer.is_busy
    assert newest_checkpoint(tmp_path) is None
    may_write.set()
    writer.finish()
    assert not writer.is_busy
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest) == {"step": 3}
    assert names_in(tmp_path) == ["step_00000003"]
    assert names_in(newest) == ["manifest.json", "state.json", "weights"]
    writer.finish()  # there is nothing more to do


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 2)
    for step in (1, 2, 3):
        writer.begin({"step": step}, {"weights": write_weights})
    assert [name for name in names_in(tmp_path) if not name.startswith(".")] == ["step_00000001", "step_00000002"]
    writer.finish()
    assert names_in(tmp_path) == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("error", [NO_SPACE, RuntimeError("PytorchStreamWriter failed writing file")])
def test_failed_write_leaves_the_previous_one_and_says_so(tmp_path: Path, error: Exception) -> None:
    save(tmp_path, 1)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(WriteError, match=r"Cannot write .*step_00000002.*intact") as raised:
        save(tmp_path, 2, fail)
    assert "\n" not in str(raised.value)
    assert names_in(tmp_path) == ["step_00000001"]


def kill_this_process(*paths: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["while writing", "before the move"])
def test_sigkill_leaves_the_previous_one_the_newest(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("modeling_radio.core.files.os.replace", kill_this_process)
        save(tmp_path, 2, kill_this_process if moment == "while writing" else write_weights)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step_00000001"
    remove_partial(tmp_path)
    assert names_in(tmp_path) == ["step_00000001"]


def test_a_checkpoint_that_was_passed_over_does_not_push_out_intact_ones(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        save(tmp_path, step)
    (tmp_path / "step_00000009" / "weights").write_bytes(b"")
    save(tmp_path, 7)  # of a run that went on from step 6
    assert names_in(tmp_path) == ["step_00000006", "step_00000007"]


def test_two_ranks_write_one_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def check() -> None:
        rank = distributed.get_rank()
        save(folder, 1, name=f"weights-{rank}")
        distributed.barrier()
        path = folder / "step_00000001"
        assert names_in(path) == ["manifest.json", "state.json", "weights-0", "weights-1"]
        assert find_damage(path) is None

    run_two_forks(check, tmp_path)


def test_a_kill_while_one_of_two_ranks_writes_leaves_the_previous_one_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1)

    def write_half_on_rank_1(path: Path) -> None:
        write_weights(path)
        if distributed.get_rank() == 1:
            (path.parent / "half").touch()
            threading.Event().wait()

    def begin() -> None:
        rank = distributed.get_rank()
        writer = CheckpointWriter(folder, 2)
        writer.begin({"step": 2}, {f"weights-{rank}": write_half_on_rank_1})
        distributed.barrier()
        while not (folder / ".partial-step_00000002" / "half").exists() or writer.is_busy != (rank == 1):
            time.sleep(0.001)
        os._exit(0)  # as by a kill: nothing more is done, and the thread ends where it is

    run_two_forks(begin, tmp_path)
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "step_00000001"
    remove_partial(folder)
    assert names_in(folder) == ["step_00000001"]


def test_what_one_rank_cannot_write_fails_on_both(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def write(path: Path) -> None:
        write_weights(path)
        if distributed.get_rank() == 1:
            raise NO_SPACE

    def check() -> None:
        with pytest.raises(WriteError, match="No space left on device"):
            save(folder, 1, write, name=f"weights-{distributed.get_rank()}")
        distributed.barrier()
        assert names_in(folder) == []

    run_two_forks(check, tmp_path)
