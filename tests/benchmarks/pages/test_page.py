"""The page and its figures are those of the stored results."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.measuring.results import Result
from benchmarks.pages import figures, page
from benchmarks.pages.page import PAGE, build_page, condense_best, condense_speed, drawn_results, newest


MACHINE = {"date": "2026-01-02", "processor": "2 x Some CPU", "threads": 2, "torch": "2.13"}
REBUILD = "run `python -m benchmarks.all --parts page`"


def speed_row(contender: str, size: int, ms: float, **others: object) -> dict[str, object]:
    row = {"dtype": "float32", "size_px": size, "batch": 1, "contender": contender, "tokens": size, "ms": ms}
    return {**row, "times as fast as native": "1.10 (1.00 to 1.20)", "share of peak": 0.5, **others}


SPEED = [
    speed_row("ours", 224, 2.0, **{"best of equal work": "native", "times as fast as that": "1.10 (1.00 to 1.20)"}),
    speed_row("native", 224, 2.2),
    speed_row("ours", 512, 4.0, exponent=1.2),
    speed_row("native", 512, 4.4, exponent=1.3),
]


def store(
    folder: Path, program: str, rows: list[dict[str, object]], date: str = "2026-01-02", **others: object
) -> None:
    content = {"program": program, "machine": {**MACHINE, "date": date}, "preset": "b", "rows": rows, **others}
    (folder / f"{program}_b_{date}_some-cpu.json").write_text(json.dumps(content))


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == build_page(), REBUILD


def test_figures_are_current() -> None:
    for result in drawn_results():
        assert figures.is_current(result, figures.figure_of(result)), REBUILD


def test_each_number_has_its_machine_and_date(tmp_path: Path) -> None:
    store(tmp_path, "inference_speed", SPEED[:2], "2026-01-01")
    store(tmp_path, "inference_speed", SPEED)
    store(tmp_path, "stack", [{"teacher": "a", "ms": 1}])
    text = build_page(tmp_path)
    assert "2026-01-01" not in text  # an older one of the same machine
    assert text.count("**b**, 2 x Some CPU, 2 threads, 2026-01-02; torch 2.13") == 3
    assert "| float32 | 224 | 1 | native | 1.10 (1.00 to 1.20) |" in text
    assert "| float32 | one | ours | 2.0 | 1.10 | 0.5 | 4.0 | 1.10 | 0.5 | 1.2 |" in text
    assert "| teacher | ms |" in text
    assert text.count("![") == 1


def test_facts_are_words_and_those_of_rows_are_tables(tmp_path: Path) -> None:
    facts = {"dtype": "float32", "bytes": 12_500_000_000.0, "end": {"status": 0, "lost": 3}, "windows": [{"ms": 7.5}]}
    store(tmp_path, "int8", [{"size_px": 224}], facts=facts)
    text = build_page(tmp_path)
    assert "; torch 2.13; dtype float32; bytes 12,500,000,000; end: status 0, lost 3\n\n| size_px |" in text
    assert "| 224 |\n\nwindows:\n\n| ms |\n| --- |\n| 7.5 |\n" in text


def test_speed_is_one_row_for_each_network() -> None:
    ours, native = condense_speed(SPEED)
    assert (ours["network"], ours["224 px, ms"], ours["512 px, ms"], ours["exponent to 512 px"]) == ("ours", 2, 4, 1.2)
    assert native["224 px, times native"] == "1.10"
    assert [row["size_px"] for row in condense_best(SPEED)] == [224]


def test_machines_stand_beside_each_other() -> None:
    def result(date: str, processor: str, gpu: str | None = None) -> Result:
        return Result("a", {"date": date, "processor": processor, **({"gpu": gpu} if gpu else {})}, "b", [], {})

    first, second, third = result("1", "x"), result("2", "x"), result("1", "x", "H100")
    assert newest([first, third, second]) == [second, third]


def test_numbers_stand_along_both_axes_of_all_figures() -> None:
    for result in drawn_results():
        for axes in figures.build_figure(result).axes:
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            assert sum(left <= place <= right for place in axes.get_xticks()) >= 2
            assert sum(bottom <= place <= top for place in axes.get_yticks()) >= 2, result.program


def test_results_of_two_subjects_have_figures_of_their_own() -> None:
    first, second = (Result("inference_speed", MACHINE, subject, SPEED, {}) for subject in ("b", "h"))
    assert figures.figure_of(first) != figures.figure_of(second)


def test_figures_draw_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PICTURES", tmp_path / "pictures")
    rows = {
        "inference_speed": SPEED,
        "inference_memory": [{"contender": "ours", "dtype": "float32", "224 px, MB": 5, "512 px, MB": 8}],
        "inference_fidelity": [{"size_px": 224, "way": "window 8", "cosine": 0.9, "photographs": 2}],
    }
    for program, each in rows.items():
        result = Result(program, MACHINE, "b", each, {})
        path = figures.figure_of(result)
        figures.draw(result, path)
        with Image.open(path) as image:
            assert image.size[1] == 380
        assert figures.is_current(result, path)
        assert not figures.is_current(result._replace(rows=[*each, each[0]]), path)
    assert figures.latency(Result("inference_speed", MACHINE, "b", SPEED, {})) == {
        "float32, one image": {"ours": ([224, 512], [2.0, 4.0]), "native": ([224, 512], [2.2, 4.4])}
    }
    panels = figures.memory(Result("inference_memory", MACHINE, "b", rows["inference_memory"], {}))
    assert panels == {"float32": {"ours": ([224, 512], [5, 8])}}


def test_writing_draws_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(page, "PAGE", tmp_path / "RESULTS.md")
    result, drawn = Result("inference_speed", MACHINE, "b", SPEED, {}), []
    monkeypatch.setattr(page, "drawn_results", lambda: [result])
    monkeypatch.setattr(page, "draw", lambda result, path: drawn.append(path) or figures.draw(result, path))
    page.write_page()
    page.write_page()
    assert drawn == [figures.figure_of(result)]
    assert (tmp_path / "RESULTS.md").read_text() == build_page()
