"""Cosines, ranks and extreme channels of features; statistics of blocks beside the model's own attention weights."""

import math

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.metrics.representation import (
    block_statistics,
    centered_cosine,
    channel_statistics,
    effective_rank,
    lidar,
    mean_cosine,
    rank_me,
)
from modeling_radio.nvidia.eradio import PUBLISHED


def test_cosines_by_hand():
    features, reference = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert mean_cosine(features, reference) == pytest.approx((1 + 0.5**0.5) / 2)
    # about (1, 1.5): (0, -1.5) with (1, -1.5), and (0, -.5) with (-1, 1.5)
    assert centered_cosine(features, reference) == pytest.approx(0, abs=1e-6)
    constant = torch.randn(50, 8) + 5
    assert mean_cosine(constant.mean(0).expand(50, 8), constant) > 0.9
    assert centered_cosine(constant.mean(0).expand(50, 8), constant) == pytest.approx(0, abs=1e-6)


def with_singular_values(*values: float) -> torch.Tensor:
    """Return centered vectors with these singular values: columns of a Hadamard matrix are centered and orthogonal."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    directions = torch.kron(torch.kron(two, two), two)[:, 1:] / math.sqrt(8)
    return directions[:, : len(values)] * torch.tensor(values)


@pytest.mark.parametrize("num_directions", [1, 3, 7])
def test_directions_used_alike_count_fully(num_directions):
    assert effective_rank(with_singular_values(*[2.0] * num_directions)) == pytest.approx(num_directions)


def test_directions_used_little_count_little():
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))  # shares 3/4 and 1/4
    features = with_singular_values(3.0, 1.0, 0.0)
    assert effective_rank(features) == pytest.approx(expected)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(100 * features @ rotation + 50) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("function", "features", "name"),
    [
        (effective_rank, torch.zeros(3), "features"),
        (effective_rank, torch.zeros(1, 3), "features"),
        (effective_rank, torch.ones(4, 3), "features"),
        (lidar, torch.zeros(3, 1, 4), "views"),
        (lidar, torch.zeros(3, 4), "views"),
    ],
)
def test_features_without_a_rank_are_refused(function, features, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        function(features)


@pytest.mark.parametrize("dim", [6, 200])  # fewer and more dimensions than vectors
def test_lidar_counts_directions_that_tell_images_apart(dim):
    """Directions that vary between views alone do not count, unlike in a plain rank."""
    images = torch.zeros(30, 1, dim)
    images[:, :, :3] = torch.randn(30, 1, 3)
    noise = torch.zeros(30, 5, dim)
    noise[:, :, 3:6] = torch.randn(30, 5, 3)
    assert lidar(images + noise + 1e-3 * torch.randn(30, 5, dim)) == pytest.approx(3, abs=0.5)
    assert rank_me((images + noise)[:, 0]) > 4.5


def test_extreme_channels_are_found():
    torch.manual_seed(0)
    tokens = torch.randn(20000, 8)
    even = channel_statistics(tokens)
    assert even["largest mean"] < 0.05
    assert even["largest deviation"] == pytest.approx(1, abs=0.05)
    assert even["variance of the widest"] == pytest.approx(1 / 8, abs=0.01)
    assert even["excess kurtosis"] == pytest.approx(0, abs=0.1)
    heavy = tokens.clone()
    heavy[::1000] *= 30
    assert channel_statistics(heavy)["excess kurtosis"] > 50
    tokens[:, 3] += 20
    tokens[:, 5] *= 10
    uneven = channel_statistics(tokens)
    assert uneven["largest mean"] == pytest.approx(20 / ((400 + 7 + 100) / 8) ** 0.5, rel=0.02)
    assert uneven["largest deviation"] == pytest.approx(10, rel=0.05)
    assert uneven["variance of the widest"] == pytest.approx(100 / 107, rel=0.02)
    assert channel_statistics(torch.ones(3, 2))["largest deviation"] == 0


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
def test_statistics_grow_with_the_weights(model):
    images = torch.rand(1, 3, 64, 64)
    before = block_statistics(model, images)
    model.blocks[0].attn.qkv.weight[: 2 * model.config.hidden_size] *= 10  # queries and keys
    model.blocks[1].mlp.fc2.weight *= 5000
    after = block_statistics(model, images)
    assert after[0].logit == pytest.approx(100 * before[0].logit, rel=1e-3)
    assert after[0].entropy < before[0].entropy <= 1
    assert after[0].weight > before[0].weight
    assert after[1].activation > 5 * before[1].activation


def test_a_network_without_blocks_is_refused():
    small = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "full_features_head_dim": 8}
    model = RadioModel(RadioConfig(**eradio_fields(PUBLISHED["eradio"] | small)))
    with pytest.raises(ValueError, match="`model_statistics`"):
        block_statistics(model, torch.rand(1, 3, 32, 32))
