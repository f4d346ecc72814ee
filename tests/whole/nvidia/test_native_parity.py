"""Our network against transformers' native RADIO model: equal weights must give equal outputs, bit for bit."""

import pytest
import torch
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioModel


@pytest.fixture
def pair(tmp_path):
    torch.manual_seed(0)
    config = RadioConfig.from_preset(
        "radio-test", adaptors=[{"name": "dino_v3", "feature_dim": 8, "summary_dim": 8, "hidden_size": 16}]
    )
    ours = RadioModel(config).eval()
    ours.save_pretrained(tmp_path)
    native, info = NativeRadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all("adaptors" in key for key in info["unexpected_keys"])
    return ours, native.eval()


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (256, 256), (16, 48)])
def test_backbone_equals_native(pair, size):
    ours, native = pair
    batch = torch.rand(2, 3, *size)
    with torch.no_grad():
        left = ours(batch, output_hidden_states=True)
        right = native(batch, output_hidden_states=True)
    assert len(left.hidden_states) == len(right.hidden_states)
    for ours_state, native_state in zip(left.hidden_states, right.hidden_states, strict=True):
        assert torch.equal(ours_state, native_state)
    for key in ("summary", "features", "last_hidden_state"):
        assert torch.equal(left[key], right[key]), key


def test_bfloat16_equals_native(pair):
    ours, native = (model.to(torch.bfloat16) for model in pair)
    batch = torch.rand(2, 3, 64, 96).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(ours(batch).features, native(batch).features)
