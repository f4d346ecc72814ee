"""Memory is that of weights and one image, and a cold start opens a checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts import memory
from benchmarks.measuring.new_process import Answer
from modeling_radio import RadioConfig


@pytest.mark.slow
def test_memory_grows_with_the_weights_and_the_image() -> None:
    """At 384 px the widest tensor of ViT-Ti has 576 tokens and more, and four times its width.

    In a new process, as always: this one has freed pages that would be used again.
    """
    config = RadioConfig.from_preset("radio-ti")
    table = config.position_grid_size**2 * config.hidden_size * 4 / 1e6  # which is copied to resize it
    weights = config.num_hidden_layers * 12 * config.hidden_size**2 * 4 / 1e6 + table
    (row,) = memory.measure_memory("radio-ti", [32, 384], Place(), ["ours"])
    assert weights < float(str(row["32 px, MB"])) < weights + 3 * table
    widest = 576 * 4 * config.hidden_size * 4 / 1e6
    assert widest < float(str(row["384 px, MB"])) - float(str(row["32 px, MB"])) < 20 * widest


def test_a_cold_start_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and not in new processes: starting those takes seconds, and has a test of its own."""

    def run_here(function: Callable[..., Any], *arguments: Any) -> Answer:
        return Answer(function(*arguments), 100.0, 500.0)

    monkeypatch.setattr(memory, "run_anew", run_here)
    ours, native = memory.measure_cold_start("radio-test", Place(), 1)
    assert (ours["contender"], native["contender"]) == ("ours", "native")
    for row in (ours, native):
        assert row["cold start, s"] == 100
        assert 0 < float(str(row["of that from_pretrained, s"])) < 100
