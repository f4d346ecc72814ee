"""What ours could do otherwise gives the same features, and is timed beside what it does."""

import pytest
import torch

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts import choices
from benchmarks.inference_parts.choices import build_calls, measure_choices
from benchmarks.measuring.turns import Turns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_are_other_ways_to_the_same_features(dtype: torch.dtype) -> None:
    calls = build_calls("radio-test", Place("cpu", dtype), 160)
    with torch.no_grad():
        features = {name: call().features.float() for name, call in calls.items()}
    assert features["even windows"].shape == features["ours"].shape == (1, 100, 32)
    assert features["ragged windows"].shape == (1, 121, 32)
    for name in ("eager attention", "SDPA", "SDPA by the plain kernel"):
        torch.testing.assert_close(features[name], features["ours"], atol=0.1, rtol=0)
    assert ("autocast of float32 weights" in features) == (dtype == torch.bfloat16)
    assert not torch.equal(features["even windows"], features["ours"])  # windows act
    model = calls["ours"].func
    assert model.config._attn_implementation == "sdpa"  # as before


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"eager attention": 0.5, "even windows": 0.4, "ragged windows": 0.9}
    monkeypatch.setattr(
        choices, "take_turns", lambda calls, **pace: Turns({name: [seconds.get(name, 1.0)] * 2 for name in calls})
    )
    (row,) = measure_choices("radio-test", [32], Place())
    assert row["ours, ms"] == 1000
    assert row["eager attention, times as fast"] == "2.00 (2.00 to 2.00)"
    assert row["ragged windows, by patch"] == "1.00 (1.00 to 1.00)"  # 9 patches in 9/4 of the time of 4
