"""Statistics of blocks, against attention weights that the model itself gives."""

import math

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia.eradio import PUBLISHED
from training.evaluation.metrics.representation import block_norms, block_statistics


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_window_size=2)).eval()


@torch.no_grad()
def test_statistics_are_those_of_weights_and_outputs(model):
    images = torch.rand(2, 3, 64, 64)
    for block in model.blocks:
        block.attn.qkv.weight *= 20  # attention that is not uniform
    found = block_statistics(model, images)
    output = model(images, window_size="global", output_attentions=True, output_hidden_states=True)
    assert len(found) == 2
    for block, (each, weights) in enumerate(zip(found, output.attentions, strict=True)):
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1).mean() / math.log(weights.shape[-1])
        assert each.entropy == pytest.approx(entropy.item(), abs=1e-4)
        assert each.activation == pytest.approx(output.hidden_states[block + 1].abs().max().item(), rel=1e-5)
    assert not any(block._forward_hooks or block.attn._forward_pre_hooks for block in model.blocks)


@torch.no_grad()
def test_what_grows_is_seen(model):
    images = torch.rand(1, 3, 64, 64)
    before = block_statistics(model, images)
    hidden = model.config.hidden_size
    model.blocks[0].attn.qkv.weight[: 2 * hidden] *= 10  # queries and keys
    model.blocks[1].mlp.fc2.weight *= 5000
    after = block_statistics(model, images)
    assert after[0].logit == pytest.approx(100 * before[0].logit, rel=1e-3)
    assert after[0].entropy < before[0].entropy <= 1
    assert after[0].weight > before[0].weight
    assert after[1].activation > 5 * before[1].activation


def test_a_network_without_blocks_is_refused():
    small = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "full_features_head_dim": 8}
    model = RadioModel(RadioConfig(**eradio_fields(PUBLISHED["eradio"] | small)))
    with pytest.raises(ValueError, match=r"got an E-RADIO\. Leave it out"):
        block_statistics(model, torch.rand(1, 3, 32, 32))


def test_norms_are_with_the_windows_of_the_model():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "vitdet_num_global": 1}
    model = RadioModel(RadioConfig.from_preset("radio-test", vitdet_window_size=2, **shape)).eval()
    images = torch.rand(2, 3, 64, 96)
    norms = block_norms(model, images)
    assert [norm.shape for norm in norms] == [(2 * 4 * 6,)] * 2
    for window, is_same in ((2, True), ("global", False)):
        with torch.no_grad():
            states = model(images, window_size=window, output_hidden_states=True).hidden_states
        expected = states[1][:, model.config.num_prefix_tokens :].norm(dim=2).flatten()
        assert torch.allclose(norms[0], expected) == is_same
