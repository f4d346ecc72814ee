import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from saved_steps import save, write_weights
from torch import distributed
from two_forks import run_two_forks

from core.files import WriteError, remove_partial
from training.distillation.checkpoints import CheckpointWriter, find_damage, newest_checkpoint, read_state


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


def test_what_is_no_failure_to_write_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 1, lambda path: 1 / 0)


def kill_this_process(*paths: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["while writing", "before the move"])
def test_sigkill_leaves_the_previous_one_the_newest(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("core.files.os.replace", kill_this_process)
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
        with pytest.raises(WriteError, match=r"Cannot write .*: No space left on device\. What"):
            save(folder, 1, write, name=f"weights-{distributed.get_rank()}")
        distributed.barrier()
        assert names_in(folder) == []

    run_two_forks(check, tmp_path)
