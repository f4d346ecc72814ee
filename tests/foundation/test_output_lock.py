import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import LOCK, RUN_FILE, check_run_folder, sole_run


def in_a_process(work: Callable[[], object], until: Path) -> int:
    """Start `work` in a forked process and wait until a file is there; return the process's number."""
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    while not until.exists():
        time.sleep(0.01)
    return process


def test_a_folder_has_one_run_at_a_time_and_no_lock_afterwards(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run"
    done = tmp_path / "done"

    def hold() -> None:
        with sole_run(output):
            (output / ".partial-mine").mkdir()
            (tmp_path / "ready").touch()
            while not done.exists():
                time.sleep(0.01)

    process = in_a_process(hold, tmp_path / "ready")
    message = r"^Another run is at work in '.*run'\. Wait until it ends or stop it, or give another --output\.$"
    with pytest.raises(UserError, match=message), sole_run(output):
        pytest.fail("entered")
    assert (output / ".partial-mine").is_dir()
    done.touch()
    assert os.waitpid(process, 0)[1] == 0
    with sole_run(output):
        assert (output / LOCK).exists()
    assert [path.name for path in output.iterdir()] == [".partial-mine"]


def test_a_killed_run_leaves_no_lock_even_if_its_data_workers_live_on(tmp_path: Path) -> None:
    def hold() -> None:
        with sole_run(tmp_path / "run"):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            (tmp_path / "number").write_text(str(worker))
            (tmp_path / "ready").touch()
            time.sleep(60)

    process = in_a_process(hold, tmp_path / "ready")
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    try:
        assert (tmp_path / "run" / LOCK).exists()
        with sole_run(tmp_path / "run"):
            pass
        assert not (tmp_path / "run").exists()
    finally:
        os.kill(int((tmp_path / "number").read_text()), signal.SIGKILL)


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_run(tmp_path):
        raise ZeroDivisionError
    with sole_run(tmp_path):
        pass


def test_only_folders_that_the_command_began_are_taken(tmp_path: Path) -> None:
    """A run replaces `final/`, and removes checkpoints and scratch folders: those of others it leaves alone."""
    with sole_run(tmp_path / "new", "training.distill"):
        (tmp_path / "new" / "final").mkdir()
    assert (tmp_path / "new" / RUN_FILE).read_text() == "training.distill\n"
    with sole_run(tmp_path / "new", "training.distill"):
        pass
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / LOCK).touch()
    (tmp_path / "begun" / f".partial-{RUN_FILE}-xyz").mkdir()
    check_run_folder(tmp_path / "begun", "training.distill")
    (tmp_path / "home" / "final").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`output` .*home', which holds final\. .*write 'training\.distill' into"):
        check_run_folder(tmp_path / "home", "training.distill")
    with (
        pytest.raises(ValueError, match=r"`output` .*holds a run of 'training\.distill'"),
        sole_run(tmp_path / "new", "training.finetune"),
    ):
        pytest.fail("entered")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`output` must be a folder, got the file"):
        check_run_folder(tmp_path / "file", "training.distill")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["final"]
