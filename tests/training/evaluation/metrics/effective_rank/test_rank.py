import math

import pytest
import torch

from training.evaluation.metrics.effective_rank.rank import effective_rank


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
