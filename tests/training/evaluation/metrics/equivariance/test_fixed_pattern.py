import pytest
import torch

from training.evaluation.metrics.equivariance.fixed_pattern import fixed_pattern_energy


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_map_that_ignores_the_image_is_all_pattern():
    assert fixed_pattern_energy(noise(1, 4, 3, 5).expand(6, -1, -1, -1)) == pytest.approx(1)


def test_a_map_that_ignores_the_position_has_none():
    assert fixed_pattern_energy(noise(6, 4, 1, 1).expand(-1, -1, 3, 5)) == pytest.approx(0)


def test_pattern_and_image_share_the_variance():
    # One channel; images are -3 and 3, positions -1 and 1: variances 9 and 1.
    images, positions = torch.tensor([-3.0, 3.0]), torch.tensor([-1.0, 1.0])
    features = (images[:, None] + positions).view(2, 1, 1, 2)
    assert fixed_pattern_energy(features) == pytest.approx(0.1)
    assert fixed_pattern_energy(5 * features + 1000) == pytest.approx(0.1)


def test_images_that_share_nothing_leave_one_over_their_number():
    assert fixed_pattern_energy(noise(50, 16, 8, 8)) == pytest.approx(1 / 50, rel=0.1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 3, 4), r"`features` must have the shape \(num_images, dim, rows, cols\).*got \(2, 3, 4\)"),
        (torch.zeros(0, 3, 4, 4), r"none of them 0, got \(0, 3, 4, 4\)"),
        (torch.ones(2, 3, 4, 4), "`features` must not all be equal"),
    ],
)
def test_what_has_no_pattern_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        fixed_pattern_energy(features)
