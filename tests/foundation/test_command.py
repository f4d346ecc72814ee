import functools
import importlib
import os
import signal

import pytest
from torch.utils.data import DataLoader

from core.command_line import run_command
from core.errors import UserError
from core.interruption import Interrupted, OutOfTime, Signaled, TrainingDivergedError


run_finetune = functools.partial(run_command, "finetune", show_traceback=False)


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("kind", [ValueError, OSError, UserError, TrainingDivergedError])
def test_what_the_user_can_mend_is_one_line(kind, capsys):
    assert run_finetune(failing(kind("bad\n  value"))) == 1
    assert capsys.readouterr().err == "finetune: error: bad value\n"


def test_a_name_of_a_megabyte_is_not_shown_whole(capsys):
    assert run_finetune(failing(ValueError(f"unknown: {'x' * 10**6}"))) == 1
    shown = capsys.readouterr().err
    assert len(shown) < 10_000
    assert shown.endswith("... (1,000,009 characters)\n")


class BadRow:
    """Rows that raise one error from another, as where a row is read."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise ValueError("first")
        except ValueError as error:
            raise self.kind("row 0:\n  bad") from error


@pytest.mark.parametrize("kind", [FileNotFoundError, UserError])
def test_errors_of_data_workers_come_without_their_traceback(kind, capsys):
    assert run_finetune(lambda: list(DataLoader(BadRow(kind), num_workers=1))) == 1
    assert capsys.readouterr().err == "finetune: error: row 0: bad\n"


class Killed(BadRow):
    """Rows whose worker is killed, as by a system without memory left."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_data_worker_is_one_line(capsys):
    assert run_finetune(lambda: list(DataLoader(Killed(OSError), num_workers=1))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "`num_workers`" in line
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        run_finetune(lambda: list(DataLoader(Killed(OSError), num_workers=1)), show_traceback=True)


@pytest.mark.parametrize("error", [ValueError("bad"), ModuleNotFoundError("no", name="absent_package")])
def test_traceback_lets_errors_pass(error):
    with pytest.raises(type(error)):
        run_finetune(failing(error), show_traceback=True)


def test_the_end_of_the_time_that_was_given_is_no_failure(capsys):
    assert run_finetune(failing(OutOfTime("Stopped after step 3: the same command resumes."))) == 0
    assert capsys.readouterr() == ("Stopped after step 3: the same command resumes.\n", "")


def test_bugs_pass():
    with pytest.raises(KeyError):
        run_finetune(failing(KeyError("bug")))


@pytest.mark.parametrize(
    ("interruption", "message", "expected"),
    [
        (KeyboardInterrupt(), "the same command goes on", 130),
        (Signaled(signal.SIGTERM), "the same command goes on", 143),
        (Interrupted("stopped at step 3", signal.SIGUSR1), "stopped at step 3", 138),
    ],
)
def test_the_status_names_the_signal(interruption, message, expected, capsys):
    status = run_finetune(failing(interruption), interrupted="the same command goes on")
    assert status == expected
    assert capsys.readouterr().err == f"finetune: {message}\n"


@pytest.mark.parametrize("name", ["absent_package", "absent_package.part"])
def test_missing_extra_is_one_line(name, capsys):
    assert run_finetune(lambda: importlib.import_module(name), extra="export") == 1
    expected = 'finetune: error: the package absent_package is not installed: run `pip install -e ".[export]"`\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", ["training.missing", "transformers.missing"])
def test_missing_parts_of_what_is_there_are_bugs(name):
    with pytest.raises(ModuleNotFoundError):
        run_finetune(lambda: importlib.import_module(name))
