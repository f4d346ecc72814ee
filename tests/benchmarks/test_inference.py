"""What cannot be timed is refused before any long work; parts run what their names say."""

from pathlib import Path

import pytest
import torch

from benchmarks import inference
from benchmarks.contenders.shapes import Place
from benchmarks.inference import InferenceBenchmark
from benchmarks.measuring import results
from benchmarks.measuring.limits import Limits
from benchmarks.measuring.results import load_results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes=-5"], "`sizes` must have sides that are multiples of 16 and at most 2048 pixels, got -5 x -5"),
        (["--sizes=32,0"], "`sizes` must have sides that are multiples of 16 and at most 2048 pixels, got 0 x 0"),
        (["--sizes=100"], "The nearest valid size is 96 x 96"),
        (["--sizes=nan"], "`sizes` must be [an integer, ...], got ['nan']"),
        (["--sizes="], "`sizes` must be [an integer, ...], got ''"),
        (["--dtypes=float8"], "`dtypes` must be one of ['float32', 'bfloat16', 'float16'], got 'float8'"),
        (["--preset=radio_v9"], "`preset` must be one of "),
        (["--contenders=ours,vgg"], "`contenders` must be one of "),
        (["--parts=all"], "`parts` must be one of "),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message, capsys):
    assert inference.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_missing_gpu_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert inference.main(["--device=cuda"]) == 1
    assert "`device` must be 'cpu': there is no GPU here, got 'cuda'" in capsys.readouterr().err


def test_parts_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "QUICK_RESULTS", tmp_path)
    monkeypatch.setattr(inference, "measure_limits", lambda device, dtype: Limits(100.0, 10.0))
    monkeypatch.setattr(inference, "measure_packed", lambda preset, place, **pace: [{"dtype": str(place.dtype)}])
    arguments = ["--preset=radio-test", "--sizes=64,32", "--contenders=ours,native", "--parts=speed,packed", "--quick"]
    assert inference.main(arguments) == 0
    (speed,), (packed,) = load_results("inference_speed", tmp_path), load_results("inference_packed", tmp_path)
    assert speed.facts == {"GB/s": 10.0, "float32, GFLOP/s": 100, "bfloat16, GFLOP/s": 100}
    assert [(row["dtype"], row["size_px"], row["contender"]) for row in speed.rows] == [
        (dtype, size, name) for dtype in ("float32", "bfloat16") for size in (32, 64) for name in ("ours", "native")
    ]
    assert len(packed.rows) == 2


@pytest.mark.parametrize(("quick", "largest"), [(True, 512), (False, 2048)])
def test_a_quick_look_at_a_gpu_has_no_2048_px(quick: bool, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(inference, "measure_speed", lambda preset, sizes, *_, **__: seen.append(sizes) or [])
    place = Place("cuda", torch.bfloat16)
    inference._speed(InferenceBenchmark(quick=quick), [224, 512], [place], {place: Limits(1.0, 1.0)}, {})
    assert [max(sizes) for sizes in seen] == [largest, largest]  # full batches and one image
