"""Ranks of features without labels, and extreme channels."""

import math

import pytest
import torch

from training.evaluation.metrics.representation import channel_statistics, effective_rank, lidar, rank_me


def with_singular_values(*values: float) -> torch.Tensor:
    """Return centered vectors with these singular values: columns of a Hadamard matrix are centered and orthogonal."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    directions = torch.kron(torch.kron(two, two), two)[:, 1:] / math.sqrt(8)
    return directions[:, : len(values)] * torch.tensor(values)


@pytest.mark.parametrize("num_directions", [1, 3, 7])
def test_directions_used_alike_count_fully(num_directions):
    assert effective_rank(with_singular_values(*[2.0] * num_directions)) == pytest.approx(num_directions)


def test_directions_used_little_count_little():
    # Shares 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(with_singular_values(3.0, 1.0)) == pytest.approx(expected)
    assert effective_rank(with_singular_values(3.0, 1.0, 0.0)) == pytest.approx(expected)


def test_scale_rotation_and_a_shared_mean_change_nothing():
    features = with_singular_values(3.0, 2.0, 1.0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(100 * features @ rotation + 50) == pytest.approx(effective_rank(features), rel=1e-4)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"`features` must have the shape \(num_vectors, dim\).*got \(3,\)"),
        (torch.zeros(1, 3), "at least two vectors"),
        (torch.ones(4, 3), "`features` must not all be equal"),
    ],
)
def test_what_has_no_rank_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        effective_rank(features)


def test_rank_counts_directions():
    assert rank_me(torch.eye(6)) == pytest.approx(6, abs=1e-3)
    assert rank_me(torch.ones(6, 4)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dim", [6, 200])  # fewer and more dimensions than vectors
def test_lidar_counts_what_tells_images_apart(dim):
    """Of directions that vary between views alone nothing is counted, though a plain rank counts them."""
    images = torch.zeros(30, 1, dim)
    images[:, :, :3] = torch.randn(30, 1, 3)
    noise = torch.zeros(30, 5, dim)
    noise[:, :, 3:6] = torch.randn(30, 5, 3)
    value = lidar(images + noise + 1e-3 * torch.randn(30, 5, dim))
    assert value == pytest.approx(3, abs=0.5)
    assert rank_me((images + noise)[:, 0]) > 4.5


def test_one_view_is_not_enough():
    with pytest.raises(ValueError, match=r"`views` must be two or more views of two or more images, got \(3, 1, 4\)"):
        lidar(torch.zeros(3, 1, 4))


def test_one_channel_far_off_and_one_far_wider_are_seen():
    torch.manual_seed(0)
    tokens = torch.randn(20000, 8)
    even = channel_statistics(tokens)
    assert even["largest mean"] < 0.05
    assert even["largest deviation"] == pytest.approx(1, abs=0.05)
    assert even["variance of the widest"] == pytest.approx(1 / 8, abs=0.01)
    assert even["excess kurtosis"] == pytest.approx(0, abs=0.1)
    tokens[:, 3] += 20
    tokens[:, 5] *= 10
    uneven = channel_statistics(tokens)
    assert uneven["largest mean"] == pytest.approx(20 / ((400 + 7 + 100) / 8) ** 0.5, rel=0.02)
    assert uneven["largest deviation"] == pytest.approx(10, rel=0.05)
    assert uneven["variance of the widest"] == pytest.approx(100 / 107, rel=0.02)


def test_rare_large_values_are_heavy_tails():
    torch.manual_seed(0)
    tokens = torch.randn(20000, 4)
    tokens[::1000] *= 30
    assert channel_statistics(tokens)["excess kurtosis"] > 50
    assert channel_statistics(torch.ones(3, 2))["largest deviation"] == 0
