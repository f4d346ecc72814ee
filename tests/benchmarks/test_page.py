"""The page's tables are those of the stored results."""

import json
from pathlib import Path

import pytest

from benchmarks import all
from benchmarks.all import MARKED, PAGE, TABLES, build_table, condense_best, condense_speed, fill
from benchmarks.measuring import RESULTS, load_results


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
    text = PAGE.read_text(encoding="utf-8")
    assert text == fill(text), "run `python -m benchmarks.all --only page`"
    assert sorted(name for _, name, _ in MARKED.findall(text)) == sorted(TABLES)
    assert text.count("<!-- ") == 2 * len(TABLES)


def test_stored_results_say_what_they_depend_on() -> None:
    files = sorted(RESULTS.iterdir())
    assert len(files) <= 8
    for path in files:
        for result in load_results(path):
            assert {"date", "processor", "threads", "torch", "transformers"} <= result.machine.keys()
            assert result.rows
    assert {"quick"}.isdisjoint(path.stem for path in files)


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
