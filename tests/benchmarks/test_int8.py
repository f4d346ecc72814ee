"""Int8 is timed beside float32, and its gain beside that of windows."""

import pytest
import torch

from benchmarks import int8
from benchmarks.measuring import Turns
from modeling_radio import RadioConfig, RadioModel


@pytest.fixture
def models() -> dict[str, RadioModel]:
    """Two networks of which the second is as 8 bits would have it: weights rounded."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test")
    networks = {name: RadioModel(config).eval() for name in ("float32", "int8")}
    networks["int8"].load_state_dict(networks["float32"].state_dict())
    with torch.no_grad():
        for layer in networks["int8"].modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_((layer.weight * 64).round() / 64)
    return networks


def timed(seconds):
    """Return a `take_turns` that calls each once and says that it took so many seconds."""

    def take(calls, **_):
        for call in calls.values():
            call()
        return Turns({name: [seconds[name]] * 2 for name in calls})

    return take


def test_sizes(models, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "take_turns", timed({"float32": 0.4, "int8": 0.1}))
    (row,) = int8.time_sizes(int8.build_calls(models, tmp_path, is_quick=True), [64], {})
    assert (row["size_px"], row["float32, ms"]) == (64, 400)
    assert row["int8, times as fast"] == "4.00 (4.00 to 4.00)"
    assert 0.9 < row["int8, cosine"] < 1
    assert int8.mean_cosine(torch.ones(1, 2), torch.tensor([[1.0, 0.0]])) == 0.7071
