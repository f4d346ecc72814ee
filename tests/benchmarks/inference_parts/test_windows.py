"""The limit of a window is what a pass without the attention of windowed blocks would be."""

import pytest
import torch

from benchmarks.contenders.shapes import Place, Shape
from benchmarks.inference_parts import windows
from benchmarks.inference_parts.windows import amdahl_limit, attention_share, attention_timed, measure_windows
from modeling_radio import RadioConfig, RadioModel


def test_the_limit_of_the_issue_is_found() -> None:
    """Of 1.54 s attention took 0.93, and 8 of 12 blocks have windows: 1.67 is all there is."""
    shape = Shape.of(RadioConfig.from_preset("radio_v2.5-b"))
    assert len(shape.windowed) == 8
    assert amdahl_limit(shape, 0.93 / 1.54) == pytest.approx(1.67, abs=0.01)
    assert amdahl_limit(shape, 0.0) == 1


def test_attention_is_timed_where_it_runs_and_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    inner = windows.sdpa_attention_forward

    def attend(*arguments: torch.Tensor, **options: float) -> object:
        now[0] += 1.0
        return inner(*arguments, **options)

    monkeypatch.setattr(windows.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(windows, "sdpa_attention_forward", attend)
    model, images = RadioModel(RadioConfig.from_preset("radio-test")).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).features
        with attention_timed(model, "cpu") as clock:
            assert torch.equal(model(images).features, expected)
        assert clock.seconds == 4.0  # one for each block
        model(images)
        assert clock.seconds == 4.0
        assert attention_share(model, images, 2) == 1.0


def test_rows_say_what_a_window_is_worth_of_its_limit() -> None:
    rows = measure_windows("radio-test", [64, 128], Place(), windows=(2, 4), budget_seconds=0, min_rounds=1)
    assert [(row["size_px"], row["window"]) for row in rows] == [
        *((64, window) for window in ("global", 2)),
        *((128, window) for window in ("global", 2, 4)),
    ]
    for row in rows:
        assert 0 < float(str(row["share of attention"])) < 1
        assert float(str(row["predicted, ms"])) > 0
        if row["window"] != "global":
            faster = float(str(row["times as fast as global"]).split()[0])
            assert row["share of the limit"] == pytest.approx(faster / float(str(row["Amdahl limit"])), rel=0.05)
