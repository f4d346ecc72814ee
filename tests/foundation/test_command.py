import argparse
import importlib

import pytest

from foundation.command import EXIT_INTERRUPTED, read_names, read_seeds, run_command
from foundation.errors import UserError
from foundation.interruption import Interrupted, TrainingDivergedError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.finetune")
    parser.add_argument("--steps", type=int, default=1)
    return parser


def failing(error):
    def run(options):
        raise error

    return run


def test_options_arrive_without_the_traceback():
    received = []
    assert run_command(build_parser(), received.append, ["--steps", "3", "--traceback"]) == 0
    assert received == [argparse.Namespace(steps=3)]


@pytest.mark.parametrize("kind", [ValueError, OSError, UserError, TrainingDivergedError])
def test_what_the_user_can_mend_is_one_line(kind, capsys):
    assert run_command(build_parser(), failing(kind("bad\n  value")), []) == 1
    assert capsys.readouterr().err == "finetune: error: bad value\n"


@pytest.mark.parametrize("error", [ValueError("bad"), ModuleNotFoundError("no", name="absent_package")])
def test_traceback_lets_errors_pass(error):
    with pytest.raises(type(error)):
        run_command(build_parser(), failing(error), ["--traceback"])


def test_bugs_pass():
    with pytest.raises(KeyError):
        run_command(build_parser(), failing(KeyError("bug")), [])


@pytest.mark.parametrize(
    ("interruption", "message"),
    [(KeyboardInterrupt(), "the same command goes on"), (Interrupted("stopped at step 3"), "stopped at step 3")],
)
def test_interruption_has_a_status_of_its_own(interruption, message, capsys):
    status = run_command(build_parser(), failing(interruption), [], interrupted="the same command goes on")
    assert status == EXIT_INTERRUPTED
    assert capsys.readouterr().err == f"finetune: {message}\n"


@pytest.mark.parametrize("name", ["absent_package", "absent_package.part"])
def test_missing_extra_is_one_line(name, capsys):
    assert run_command(build_parser(), lambda options: importlib.import_module(name), [], extra="export") == 1
    expected = 'finetune: error: the package absent_package is not installed: run `pip install -e ".[export]"`\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", ["training.missing", "transformers.missing"])
def test_missing_parts_of_what_is_there_are_bugs(name):
    with pytest.raises(ModuleNotFoundError):
        run_command(build_parser(), lambda options: importlib.import_module(name), [])


def test_lists_of_seeds_and_names():
    assert read_seeds("0,1,2") == [0, 1, 2]
    assert read_names("sam3, dino_v3") == ["sam3", "dino_v3"]
    assert (read_names("all"), read_names("none")) == (None, [])
