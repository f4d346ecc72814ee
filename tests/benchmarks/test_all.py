"""What runs where, and what cannot be measured is refused before any long work."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import all as all_benchmarks
from benchmarks import stack
from benchmarks.all import CASES, AllSettings


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would run; `stack` fails."""
    seen: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        seen.append(command)
        return subprocess.CompletedProcess(command, int("--only=stack" in command))

    monkeypatch.setattr(all_benchmarks.subprocess, "run", run)
    monkeypatch.setattr(all_benchmarks, "write_page", lambda: seen.append(["page"]))
    return seen


def test_all_run_even_if_one_fails(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert all_benchmarks.main(["--sizes=224,512", "--student=folder"]) == 1
    assert commands[-1] == ["page"]
    assert [command[1:4] for command in commands[:-1]] == [["-m", "benchmarks.all", f"--only={name}"] for name in CASES]
    settings = all_benchmarks.COMMAND.read(commands[0][3:])
    assert settings == AllSettings(only=["inference"], sizes=[224, 512], student=Path("folder"))
    assert "stack failed; see above. All others are written." in capsys.readouterr().err


def test_a_gpu_has_a_part_in_some(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    all_benchmarks.main(["--device=cuda", "--quick"])
    parts = [command[3] for command in commands]
    assert parts == ["--only=inference", "--only=sizes", "--only=stack", "--only=training"]  # and no page


def test_one_case_runs_here_and_the_page_alone(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(stack, "run", measured.append)
    assert all_benchmarks.main(["--only=stack"]) == 0
    assert measured == [AllSettings(only=["stack"])]
    assert all_benchmarks.main(["--only=page"]) == 0
    assert commands == [["page"]]


def test_all_cases_are_explained() -> None:
    assert [name for name in CASES if f"`{name}`" not in all_benchmarks.__doc__] == []
    assert len(CASES) <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes=-5"], "`sizes` must have sides that are multiples of 16 and at most 2048 pixels, got -5 x -5"),
        (["--sizes=100"], "The nearest valid size is 96 x 96"),
        (["--dtypes=float8"], "`dtypes` must be one of "),
        (["--preset=radio_v9"], "`preset` must be one of "),
        (["--only=everything"], "`only` must be one of "),
        (["--against=nowhere"], "`against` must be the root of a checkout of this project, got 'nowhere'"),
        (["--peer-python=nowhere"], "`peer_python` must be the path of a Python that has lightly-train and timm"),
        (["--device=cuda"], "`device` must be 'cpu': there is no GPU here, got 'cuda'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str],
    message: str,
    commands: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert all_benchmarks.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert commands == []
