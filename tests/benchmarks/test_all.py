"""What runs where, and that every part takes its arguments."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import all as all_benchmarks
from benchmarks.all import PARTS, AllSettings
from benchmarks.measuring.results import FOLDER_VARIABLE, QUICK_RESULTS


WITHOUT_A_DEVICE = ("preprocessing",)
"""Parts that the processor of a GPU's machine runs."""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would run; `stack` fails."""
    seen: list[list[str]] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess:
        seen.append(command)
        return subprocess.CompletedProcess(command, int("benchmarks.stack" in command))

    monkeypatch.setattr(all_benchmarks.subprocess, "run", run)
    monkeypatch.setattr(all_benchmarks, "write_page", lambda: seen.append(["page"]))
    return seen


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_parts_read_their_arguments(name: str, device: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    arguments = PARTS[name].arguments(AllSettings(device=device, quick=quick, student=Path("student")))
    if arguments is not None:
        settings = importlib.import_module(f"benchmarks.{name}").COMMAND.read(arguments)
        assert device == "cpu" or name in WITHOUT_A_DEVICE or settings.device == device


def test_all_run_even_if_one_fails(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert all_benchmarks.main(["--student=folder"]) == 1
    names = [name for name, part in PARTS.items() if part.cpu is not None]
    assert commands[-1] == ["page"]
    assert [command[:3] for command in commands[:-1]] == [
        [sys.executable, "-m", f"benchmarks.{each}"] for each in names
    ]
    assert commands[0][3:] == ["--student=folder"]
    assert "stack failed; see above. All others are written." in capsys.readouterr().err


def test_the_others_are_named() -> None:
    folder = Path(all_benchmarks.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "all"}
    assert [name for name in names if name not in PARTS and f"`{name}`" not in all_benchmarks.__doc__] == []
    assert all(name in all_benchmarks.__doc__.partition("\n")[0] for name in PARTS)


def test_parts_are_chosen(commands: list[list[str]]) -> None:
    assert all_benchmarks.main(["--parts=page"]) == 0
    assert commands == [["page"]]


def test_a_quick_look_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str]] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess:
        seen.append((command[3:], env[FOLDER_VARIABLE]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(all_benchmarks.subprocess, "run", run)
    monkeypatch.setattr(all_benchmarks, "write_page", lambda: pytest.fail("the page was written"))
    assert all_benchmarks.main(["--quick", "--student=folder", "--parts=inference,page"]) == 0
    assert seen == [(["--student=folder", "--quick"], str(QUICK_RESULTS))]
