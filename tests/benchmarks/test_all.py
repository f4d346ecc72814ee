"""Which cases run, and the page's tables of stored results."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import all, stack
from benchmarks import all as all_benchmarks
from benchmarks.all import (
    CASES,
    MARKED,
    PAGE_FILE,
    TABLES,
    AllSettings,
    build_table,
    condense_best,
    condense_speed,
    fill,
)


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


MACHINE = {"date": "2026-01-02", "processor": "2 x Some CPU", "threads": 2, "torch": "2.13"}


def speed_row(contender: str, size: int, ms: float, **others: object) -> dict[str, object]:
    row = {"dtype": "float32", "size_px": size, "batch": 1, "contender": contender, "ms": ms}
    return {**row, "times as fast as native": "1.10 (1.00 to 1.20)", "share of peak": 0.5, **others}


SPEED = [
    speed_row("ours", 224, 2.0, **{"best of equal work": "native", "times as fast as that": "1.10 (1.00 to 1.20)"}),
    speed_row("native", 224, 2.2),
    speed_row("ours", 512, 4.0, exponent=1.2),
    speed_row("native", 512, 4.4, exponent=1.3),
]


def test_the_page_is_current() -> None:
    text = PAGE_FILE.read_text(encoding="utf-8")
    assert text == fill(text), "run `python -m benchmarks.all --only page`"
    assert sorted(name for _, name, _ in MARKED.findall(text)) == sorted(TABLES)
    assert text.count("<!-- ") == 2 * len(TABLES)


def test_a_table_has_its_machine_and_leaves_out_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all, "RESULTS", tmp_path)
    facts = {"dtype": "float32", "bytes": 12_500_000_000.0, "end": {"status": 0, "lost": 3}, "windows": [{"ms": 7.5}]}
    rows = [{"size_px": 224}, {"size_px": 512, "is_gone": True}]
    result = {"table": "int8", "subject": "b", "machine": MACHINE, "facts": facts, "rows": rows}
    (tmp_path / "int8.jsonl").write_text(json.dumps(result) + "\n" + json.dumps({**result, "table": "other"}) + "\n")
    assert build_table("int8") == (
        "**b**, 2 x Some CPU, 2 threads, 2026-01-02; torch 2.13; dtype float32; bytes 12,500,000,000; "
        "end: status 0, lost 3\n\n| size_px |\n| --- |\n| 224 |\n\nwindows:\n\n| ms |\n| --- |\n| 7.5 |"
    )
    text = "a\n<!-- table: int8 -->\nold\n<!-- end -->\nb\n"
    assert fill(text) == f"a\n<!-- table: int8 -->\n\n{build_table('int8')}\n\n<!-- end -->\nb\n"
    assert fill(fill(text)) == fill(text)


def test_speed_is_one_row_for_each_network() -> None:
    ours, native = condense_speed(SPEED)
    assert (ours["network"], ours["224 px, ms"], ours["512 px, ms"], ours["exponent to 512 px"]) == ("ours", 2, 4, 1.2)
    assert native["224 px, times native"] == "1.10"
    assert [row["size_px"] for row in condense_best(SPEED)] == [224]


def test_one_case_runs_here_and_others_in_processes(commands, monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(stack, "run", measured.append)
    assert all_benchmarks.main(["--only=stack"]) == 0
    assert measured == [AllSettings(only=["stack"])]
    assert all_benchmarks.main(["--only=page"]) == 0
    assert commands.pop() == ["page"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    all_benchmarks.main(["--device=cuda", "--quick"])  # without the page
    assert [command[3][7:] for command in commands] == ["inference", "sizes", "stack", "training"]


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
