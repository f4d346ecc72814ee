"""RADIO1D is timed beside the plain network of the same shape."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts import global_tokens
from benchmarks.inference_parts.global_tokens import build_calls, measure_global_tokens
from benchmarks.measuring.turns import Turns


def test_what_is_timed_is_what_is_named() -> None:
    calls = build_calls("radio-test", Place(), [1, 3])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        answers = {name: call(image) for name, call in calls.items()}
    assert answers["plain"].global_tokens is None
    assert answers["encoder, all tokens"].features is None
    assert answers["encoder, all tokens"].global_tokens.shape == (1, 4, 64)
    assert answers["encoder and decoder"].features.shape == (1, 16, 32)
    assert answers["progressive encoder, 3"].global_tokens.shape == (1, 3, 64)


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, Callable[[], object]], **pace: object) -> Turns[str]:
        return Turns({**{name: [0.5, 0.4] for name in calls}, "plain": [1.0, 0.8]})

    monkeypatch.setattr(global_tokens, "take_turns", timed)
    row, larger = measure_global_tokens("radio-test", [32, 64], Place(), tokens=[1, 4])
    assert row["plain, ms"] == 900
    assert not any("progressive encoder, 4" in name for name in row)  # 2 x 2 patches are one token
    assert larger["progressive encoder, 4, ms"] == 450
    assert row["progressive encoder, 1, times as fast"] == "2.00 (2.00 to 2.00)"
