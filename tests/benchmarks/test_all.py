"""Which cases run, and the page's tables of stored results."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import all as all_benchmarks
from benchmarks.all import CASES, MARKED, PAGE_FILE, TABLES, AllSettings, fill


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would run; `training` fails."""
    seen: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        seen.append(command)
        return subprocess.CompletedProcess(command, int("--only=training" in command))

    monkeypatch.setattr(all_benchmarks.subprocess, "run", run)
    monkeypatch.setattr(all_benchmarks, "write_page", lambda: seen.append(["page"]))
    return seen


def test_all_run_even_if_one_fails(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert all_benchmarks.main(["--sizes=224,512", "--photographs=folder"]) == 1
    assert commands[-1] == ["page"]
    assert [command[1:4] for command in commands[:-1]] == [["-m", "benchmarks.all", f"--only={name}"] for name in CASES]
    settings = all_benchmarks.COMMAND.read(commands[0][3:])
    assert settings == AllSettings(only=["inference"], sizes=[224, 512], photographs=Path("folder"))
    assert "training failed; see above. All others are written." in capsys.readouterr().err


def test_the_page_is_current() -> None:
    text = PAGE_FILE.read_text(encoding="utf-8")
    assert text == fill(text), "run `python -m benchmarks.all --only page`"
    assert sorted(name for _, name, _ in MARKED.findall(text)) == sorted(TABLES)
    assert text.count("<!-- ") == 2 * len(TABLES)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        *(
            ("--sizes=-5", "sizes"),
            ("--sizes=100", "sizes"),
            ("--dtypes=float8", "dtypes"),
            ("--device=cuda", "device"),
        ),
        *(("--preset=radio_v9", "preset"), ("--only=everything", "only"), ("--against=nowhere", "against")),
        ("--peer-python=nowhere", "peer_python"),
    ],
)
def test_what_cannot_be_measured_is_one_line(argument, named, commands, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert all_benchmarks.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"`{named}" in error
    assert commands == []
