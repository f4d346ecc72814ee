"""Every contender opens the same weights, all of them are read, and memory is what the opening took."""

from pathlib import Path

import pytest
import torch

from benchmarks import loading
from benchmarks.loading import CONTENDERS, FILE_ALONE, LoadingSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("network")
    loading.save_network("radio-test", "float32", folder)
    return str(folder)


def test_all_open_the_same_weights(folder: str) -> None:
    weights = {contender: loading.open_weights(contender, folder) for contender in CONTENDERS}
    counts = {contender: sum(each.numel() for each in found) for contender, found in weights.items()}
    sums = {
        contender: sum(float(each.detach().double().sum()) for each in found) for contender, found in weights.items()
    }
    assert counts["ours"] == counts[FILE_ALONE]
    assert sums["ours"] == pytest.approx(sums[FILE_ALONE])
    ones = counts["native"] - counts[FILE_ALONE]  # LayerScale, which is folded in the file
    assert sums["native"] == pytest.approx(sums[FILE_ALONE] + ones)
    assert not any(each.is_meta for found in weights.values() for each in found)


def test_every_page_is_read() -> None:
    pages = torch.zeros(4, loading.PAGE_BYTES, dtype=torch.uint8)
    pages[:, 0] = torch.tensor([1, 2, 3, 4])
    assert loading.touch_pages([pages, torch.ones((), dtype=torch.uint8)]) == 11


def test_memory_and_time_of_one_opening(folder: str) -> None:
    loading.leave_cache(Path(folder, loading.WEIGHTS))
    told = loading.time_opening("ours", folder)
    assert told["seconds"] > 0
    assert told["memory_mb"] < 100


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def answer(function: object, contender: str, folder: str) -> object:
        calls.append((function, contender, Path(folder, loading.WEIGHTS).is_file()))
        seconds = {FILE_ALONE: 1.0, "ours": 1.5, "native": 3.0}[contender]
        return type("Answer", (), {"value": {"seconds": seconds, "memory_mb": 1.0}})

    monkeypatch.setattr(loading, "run_anew", answer)
    rows = loading.measure(LoadingSettings(preset="radio-test", rounds=2))
    assert len(rows) == 2 * len(CONTENDERS)
    assert set(calls) == {(loading.time_opening, contender, True) for contender in CONTENDERS}
    ours = rows[1]
    assert (ours["cache"], ours["contender"], ours["ms"]) == ("warm", "ours", 1500)
    assert ours["time, of the file alone"] == "1.50 (1.50 to 1.50)"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--caches=hot", "`caches` must be one of ['warm', 'cold']"),
        ("--rounds=0", "`rounds` must be "),
        ("--preset=radio_v9", "`preset` must be one of "),
    ],
)
def test_what_cannot_be_timed_is_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loading.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
