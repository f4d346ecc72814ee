"""Files of results are written whole, and read again."""

from pathlib import Path

import pytest

from benchmarks.measuring import results
from benchmarks.measuring.machine import describe_machine, file_name_of
from benchmarks.measuring.results import load_results, report


def test_what_is_reported_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    rows = [{"size_px": 224, "ours, ms": 1.5}, {"size_px": 512, "native, ms": 2.5}]
    path = report("speed", "tiny", rows, facts={"peak, GFLOP/s": 7})
    printed = capsys.readouterr().out
    assert "| size_px | ours, ms | native, ms |" in printed
    assert "| 512 |  | 2.5 |" in printed
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    (result,) = load_results("speed", tmp_path)
    assert (result.subject, result.rows, result.facts) == ("tiny", rows, {"peak, GFLOP/s": 7})
    assert result.machine == describe_machine()
    assert load_results("spee", tmp_path) == []


def test_results_can_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "QUICK_RESULTS", tmp_path / "quick")
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path / "named"))
    assert report("speed", "tiny", [{"ms": 1}]).parent == tmp_path / "named"
    assert report("speed", "tiny", [{"ms": 1}], is_quick=True).parent == tmp_path / "quick"


def test_the_file_is_named_by_what_computed() -> None:
    machine = {"date": "2026-01-02", "processor": "2 x AMD EPYC"}
    assert file_name_of(machine) == "2026-01-02_2-x-amd-epyc"
    assert file_name_of({**machine, "gpu": "NVIDIA H100 80GB HBM3"}) == "2026-01-02_nvidia-h100-80gb-hbm3"


def test_stored_results_are_readable() -> None:
    """And none is of another program whose name begins alike."""
    for program in ("checkouts", "training_options"):
        assert {"2.13.0+cpu"} <= {result.machine["torch"] for result in load_results(program)}
    assert not any("step" in row for result in load_results("training") for row in result.rows)
