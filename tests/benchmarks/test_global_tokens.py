"""RADIO1D is timed beside the plain network of the same shape."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import global_tokens
from benchmarks.global_tokens import build_calls
from benchmarks.measuring.turns import Turns


def test_what_is_timed_is_what_is_named() -> None:
    calls = build_calls("radio-test", torch.float32, [1, 3])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        answers = {name: call(image) for name, call in calls.items()}
    assert answers["plain"].global_tokens is None
    assert answers["encoder, all tokens"].features is None
    assert answers["encoder, all tokens"].global_tokens.shape == (1, 4, 64)
    assert answers["encoder and decoder"].features.shape == (1, 16, 32)
    assert answers["progressive encoder, 3"].global_tokens.shape == (1, 3, 64)


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, Callable[[], object]], device: str) -> Turns[str]:
        return Turns({**{name: [0.5, 0.4] for name in calls}, "plain": [1.0, 0.8]})

    monkeypatch.setattr(global_tokens, "take_turns", timed)
    settings = global_tokens.GlobalTokensSettings(preset="radio-test", sizes=[32], tokens=[1])
    (row,) = global_tokens.measure(settings)
    assert row["plain, ms"] == 900
    assert row["progressive encoder, 1, times as fast"] == "2.00 (2.00 to 2.00)"


def test_sizes_that_do_not_fit_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert global_tokens.main(["--sizes=100"]) == 1
    assert "The nearest valid size is 96 x 96" in capsys.readouterr().err
