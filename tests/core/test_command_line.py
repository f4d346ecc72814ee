"""Words of a command line become settings; what is wrong with them, or ends a command, is one line and a status."""

import errno
import functools
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from toy_settings import Toy

import modeling_radio_cli
from modeling_radio.core.command_line import Command, one_line_warnings, recorded_command, run_command, typed_command
from modeling_radio.core.errors import UserError
from modeling_radio.core.interruption import Interrupted, OutOfTime, Signaled, TrainingDivergedError
from modeling_radio.core.settings import Settings, SettingsError
from modeling_radio_cli import COMMANDS, find_module


class WithChanges(Settings):
    """Options of a command that changes something else.

    Attributes:
        files: Files to read.
        changes: Changes of the toy.
        steps: How many.
        check: Whether to look twice; `--weights` is for the toy.
        entries: As a section of the toy is called.
    """

    files: list[Path]
    changes: list[str] = []
    steps: int = 3
    check: bool = True
    entries: str = "x"

    @classmethod
    def unchanged(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"section": {"rate": 0.7}} if options.get("steps") == "5" else {}


TOY = Command("package.toy", "Plays.", Toy, positionals=("source",))
CHANGING = Command("package.change", "Changes.", WithChanges, positionals=("files",), changes=Toy)


def test_flags_and_changes_set_the_same_fields():
    flags = TOY.read(
        ["a", "--sizes", "1,2", "--sizes", "3", "--weights", "balanced", "--side", "4", "--is-quick", "--output", "007"]
    )
    assert flags == TOY.read(["sizes=1,2,3", "weights=balanced", "a", "side=4", "is_quick=true", "output=007"])
    assert (flags.source, flags.sizes, flags.side, flags.output) == ("a", [1, 2, 3], (4, 4), Path("007"))
    settings = TOY.read(["a", "--window", "8", "window=auto", "section.rate=0.3", "entries.low.size=2"])
    assert (settings.window, settings.section.rate, settings.entries[0].size) == ("auto", 0.3, 2)
    assert TOY.read(["a", "--output", "x=y", "side=4"]).output == Path("x=y")  # a flag's value is no change


def test_changes_of_something_else_are_told_from_options_and_files():
    words = ["x", "./a=b", "section.rate=0.3", "y", "--steps", "5", "source=z", "entries=y", "entries.low.size=2"]
    settings = CHANGING.read([*words, "--no-check"])
    assert settings.files == [Path("x"), Path("./a=b"), Path("y")]
    assert settings.changes == ["section.rate=0.3", "source=z", "entries.low.size=2"]
    assert (settings.steps, settings.entries, settings.check) == (5, "y", False)
    assert CHANGING.read(["x", "steps=6"]).check


@pytest.mark.parametrize(
    ("command", "words", "parts"),
    [
        (TOY, ["a", "--sises", "1"], "'--sises'|'--sizes'?|--help"),
        (TOY, ["a", "--sises=1"], "'--sises=1'|'--sizes'?"),
        (CHANGING, ["x", "--weights", "1"], "'--weights'. --help"),  # an option of another command, which a text names
        (TOY, ["a", "--sizes"], "--sizes|expected one argument"),
        (TOY, ["a", "--bits", "5"], "`bits`|[4, 8]|got 5."),
        (TOY, ["a", "--window", "[1"], "`window`|not YAML"),
        (TOY, ["a", "--window", ""], "`window`|''|Leave it out"),
        (TOY, ["a", "--output= "], "`output`|' '"),
        (TOY, [""], "`source`|''"),
        (TOY, ["a", "sises=1"], "'sises'|'sizes'?"),
        (TOY, ["a", "b"], "'b'|field=value"),
        (CHANGING, ["x", "sectoin.rate=1"], "'sectoin'|'section'?"),
        (CHANGING, ["x", "stebs=1"], "'stebs'|'steps'?"),
    ],
)
def test_a_refused_word_is_one_line(command, words, parts, capsys):
    assert command.run(lambda settings: None, words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{command.name}: error: ")
    assert [part for part in parts.split("|") if part not in line] == []
    with pytest.raises(ValueError, match=r"."):
        command.run(lambda settings: None, [*words, "--traceback"])


def test_a_command_is_recorded_as_it_was_typed_without_secrets_and_places():
    words = ["/mnt/jane/pets", "--sizes", "1,2", "--side=4", "output=~/x y", "--weights", "balanced"]
    found = []
    TOY.run(lambda settings: found.append(recorded_command("package.toy", settings, ["source"])), words)
    assert found == ["package.toy pets --sizes 1,2 --side=4 'output=x y' --weights balanced"]
    hidden = f"hf_{'a' * 34}"
    for word, shown in {
        "https://me:pw@host/sets/a.tar?sig=abc": "a.tar",
        "s3://bucket/sets/train-{0..9}.tar": "train-{0..9}.tar",
        "teacher:dinov2:/mnt/jane/weights/": "teacher:dinov2:weights",
        "timm:vit,/mnt/jane/own": "timm:vit,own",
        "../sets/pets": "../sets/pets",
        "/": "/",
        hidden: "...",
    }.items():
        TOY.run(lambda settings: found.append(typed_command("package.toy")), [word])
        assert shlex.split(found.pop()) == ["package.toy", shown]
    assert typed_command("package.toy") is None


def test_a_call_is_recorded_as_the_command_of_its_settings():
    settings = Toy(source="pets", sizes=[1, 2], side=(4, 6), is_quick=True, weights="balanced")
    words = shlex.split(recorded_command("package.toy", settings, ["source"]))
    assert words[:2] == ["package.toy", "pets"]
    assert TOY.read(words[1:]) == settings
    changed = WithChanges(files=[Path("x")], changes=["section.rate=0.3"], check=False)
    assert recorded_command("package.change", changed).endswith(" section.rate=0.3 check=false")


def test_usage_stands_before_what_is_missing(capsys):
    assert TOY.run(lambda settings: None, []) == 1
    usage, error = capsys.readouterr().err.split("package.toy: error: ")
    assert usage.startswith("usage: package.toy SOURCE [options]")
    assert "SOURCE" in error
    assert error.count("\n") == 1


def shown_help(command, *words, capsys):
    with pytest.raises(SystemExit) as end:
        command.read([*words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_setting_with_the_defaults_that_the_options_choose(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    toy, changing = (shown_help(command, capsys=capsys) for command in (TOY, CHANGING))
    for part in ("--weights balanced|A,B", "--bits {4,8}", "SOURCE"):
        assert part in toy
    for part in (
        *("--no-check", "How many. (default: 3)", "Whether to look twice"),
        "  section.rate: a number in [0, 1) (default: 0.1)\n      How fast, over two lines.\n",
        "  entries.NAME.size: an integer above 0 (default: 8)\n",
        *("  source: a text (required)\n", "  is_quick: true or false (default: false)\n"),
    ):
        assert part in changing
    assert "section.rate: a number in [0, 1) (default: 0.7)" in shown_help(CHANGING, "--steps", "5", capsys=capsys)


ROOT = Path(__file__).parents[2]
LIGHT = """
import sys
import modeling_radio_cli
for command in modeling_radio_cli.COMMANDS:
    for word in ("--help", "--nothing"):
        try:
            status = modeling_radio_cli.main([command, word])
        except SystemExit as end:
            status = end.code
        assert bool(status) == (word == "--nothing"), (command, word, status)
        assert not {"torch", "transformers"} & set(sys.modules), (command, word)
"""


def test_help_and_mistakes_do_not_wait_for_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: radio ") == len(COMMANDS) == done.stderr.count("error: ")


@pytest.mark.parametrize("words", [["--to", "timm", "a"], ["a", "--to=timm"], ["--to", "nvidia", "a", "--to", "timm"]])
def test_the_format_is_given_as_flags_are(words):
    assert find_module("convert", words) == ("conversion.to_timm", ["a"])
    assert find_module("plan", words) == ("training.plan", words)


def test_no_option_is_offered_that_does_not_exist():
    with pytest.raises(SettingsError, match=r"'--no-chekc'.*'--no-check'"):
        CHANGING.read(["x", "--no-chekc"])
    described = Command("package.toy", "Plays; `radio toy --to FORMAT` does not.", Toy, positionals=("source",))
    with pytest.raises(SettingsError, match=r"'--to'\.(?!.*'--to')"):
        described.read(["x", "--to"])


# How commands end

run_finetune = functools.partial(run_command, "finetune", show_traceback=False, extra="export")


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        *((kind("bad\n  value"), 1, "error: bad value") for kind in (ValueError, OSError, UserError)),
        (TrainingDivergedError("bad"), 1, "error: bad"),
        (
            ModuleNotFoundError(name="absent_package.part"),
            1,
            'error: .*absent_package .*`pip install "modeling-radio\\[export]"`',
        ),
        (ImportError("this needs\n flash attention"), 1, "error: this needs flash attention"),  # a library's own words
        (KeyboardInterrupt(), 130, "interrupted"),
        (Signaled(signal.SIGTERM), 143, "interrupted"),
        (Interrupted("stopped at step 3", signal.SIGUSR1), 138, "stopped at step 3"),
        (ValueError("no http://me:S3CRET@host"), 1, r"error: no http://\.\.\.@host"),
        (OSError(errno.ENOSPC, "no space"), 1, r"error: .*TMPDIR.*HF_HOME.*: no space\. .*"),
        (OSError(errno.ENOSPC, "no space", "a.png"), 1, r"error: .*'a\.png': no space\. .*"),
        (ValueError("x" * 10**6), 1, r"error: x{5000}\.\.\. \(1,000,000 characters\)"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_status(error, status, line, capsys):
    assert run_finetune(failing(error)) == status
    assert re.fullmatch(f"finetune: {line}\n", capsys.readouterr().err)


def test_ctrl_c_while_libraries_are_imported_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(modeling_radio_cli.importlib, "import_module", lambda name: failing(KeyboardInterrupt())())
    assert modeling_radio_cli.main(["plan"]) == 130
    assert capsys.readouterr().err == "radio plan: interrupted\n"


def test_the_end_of_the_given_time_is_no_failure(capsys):
    assert run_finetune(failing(OutOfTime("Stopped after step 3."))) == 0
    assert capsys.readouterr() == ("Stopped after step 3.\n", "")


@pytest.mark.parametrize(
    "run",
    [
        failing(KeyError("bug")),
        lambda: importlib.import_module("modeling_radio.training.missing"),
        lambda: importlib.import_module("transformers.missing"),
    ],
)
def test_bugs_pass(run):
    with pytest.raises((KeyError, ModuleNotFoundError)):
        run_finetune(run)


class BadRow:
    """Rows that raise one error from another, or whose worker is killed as by a system without memory left."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if self.kind is None:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            raise ValueError("first")
        except ValueError as error:
            raise self.kind("row 0:\n  bad") from error


@pytest.mark.parametrize(
    ("kind", "part"), [(FileNotFoundError, "row 0: bad"), (UserError, "row 0: bad"), (None, "`num_workers`")]
)
def test_errors_of_data_workers_are_one_line(kind, part, capsys):
    def run():
        batches = iter(DataLoader(BadRow(kind), num_workers=1))
        try:
            list(batches)
        finally:  # torch's error refers to itself, and garbage collection waits five seconds for a worker
            batches._shutdown_workers()

    assert run_finetune(run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
    with pytest.raises((RuntimeError, OSError, UserError)):
        run_finetune(run, show_traceback=True)


def test_warnings_are_one_line(capsys):
    with one_line_warnings("toy"):
        warnings.warn("odd\nnumbers", stacklevel=1)
    assert capsys.readouterr().err == "toy: warning: odd numbers\n"
