"""Fixed patterns, shifts, sizes and positions, on maps of which the answer is known."""

import pytest
import torch
from torch.nn import functional as F

from training.evaluation.metrics.fidelity import (
    feature_consistency,
    fixed_pattern_energy,
    map_agreement,
    position_r2,
    shift_error,
)


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


SHIFTS = [(0, 0), (1, 2), (-1, 2), (2, -3), (-2, -1)]
WORLD = torch.randn(3, 4, 20, 20, generator=torch.Generator().manual_seed(0))


def seen_from(row: int, col: int) -> torch.Tensor:
    return WORLD[:, :, 5 + row : 11 + row, 5 + col : 13 + col]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_map_that_moves_with_its_image_has_none(shift):
    assert shift_error(seen_from(0, 0), seen_from(*shift), shift) == 0


def test_the_other_direction_is_an_error():
    assert shift_error(seen_from(0, 0), seen_from(1, 2), (-1, -2)) > 1


def test_a_pattern_fixed_to_the_grid_counts_against_the_variance_of_the_overlap():
    # One channel, rows of 0, 2, 0, 2, ...: moved by one row each differs by 2 (squared 4) and the variance is 1.
    pattern = torch.tensor([0.0, 2.0]).repeat(3)[:5].view(1, 1, 5, 1).expand(1, 1, 5, 4)
    assert shift_error(pattern, pattern, (1, 0)) == pytest.approx(4)
    assert shift_error(pattern, pattern, (2, 0)) == 0
    assert shift_error(10 * pattern + 7, 10 * pattern + 7, (1, 0)) == pytest.approx(4)


def test_maps_without_anything_in_common_have_two():
    first, second = torch.randn(2, 20, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert shift_error(first, second, (1, 1)) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("shapes", "shift", "message"),
    [
        (
            ((2, 3, 4, 4), (2, 3, 4, 5)),
            (0, 0),
            r"`shifted` must have the shape .*got \(2, 3, 4, 5\) and \(2, 3, 4, 4\)",
        ),
        (((3, 4, 4), (3, 4, 4)), (0, 0), "`shifted` must have the shape"),
        (
            ((2, 3, 4, 6), (2, 3, 4, 6)),
            (-4, 0),
            r"`shift` must leave an overlap of maps of 4 x 6 patches, got \(-4, 0\)",
        ),
        (((2, 3, 4, 6), (2, 3, 4, 6)), (0, 6), "`shift` must leave an overlap"),
        (((2, 3, 4, 4), (2, 3, 4, 4)), (1, 0), "`features` must not all be equal"),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes, shift, message):
    with pytest.raises(ValueError, match=message):
        shift_error(*(torch.zeros(shape) for shape in shapes), shift)


def maps(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_equal_maps_are_fully_consistent():
    assert map_agreement(maps(0), maps(0), torch.zeros(4)).tolist() == pytest.approx([1.0, 1.0])


def test_a_mean_that_all_features_share_flatters_the_plain_cosine_only():
    plain, centered = map_agreement(maps(0) + 100, maps(1) + 100, torch.full((4,), 100.0)).tolist()
    assert plain > 0.99
    assert abs(centered) < 0.5


def test_the_larger_map_is_resampled():
    fine = F.interpolate(maps(0)[None], scale_factor=2, mode="nearest")[0]
    assert map_agreement(maps(0), fine, torch.zeros(4)).tolist() == pytest.approx([1.0, 1.0], abs=0.15)
    assert map_agreement(maps(0), fine.flip(1), torch.zeros(4))[0] < 0.7


def test_equal_maps_are_fully_consistent_of_many():
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert feature_consistency(features, features) == pytest.approx((1.0, 1.0))


def test_a_mean_that_all_features_share_flatters_the_plain_cosine_only_of_many():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    consistency = feature_consistency(first + 100, second + 100)
    assert consistency.features > 0.99
    assert abs(consistency.centered_features) < 0.4


def test_the_larger_map_is_resampled_of_many():
    coarse = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, scale_factor=2, mode="nearest")
    assert feature_consistency(coarse, fine) == pytest.approx((1.0, 1.0), abs=0.15)
    assert feature_consistency(coarse, fine.flip(2)).features < 0.7


def test_positions_are_read_where_they_are_written():
    axis = torch.linspace(-1, 1, 6)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    # On unit features a linear map sees directions: a constant beside the place keeps them apart.
    features = torch.cat([places, torch.ones(1, 6, 6)])[None].expand(12, -1, -1, -1) + 0.01 * torch.randn(12, 3, 6, 6)
    assert position_r2(features[:6], features[6:]) > 0.8
    noise = torch.randn(12, 3, 6, 6)
    assert abs(position_r2(noise[:6], noise[6:])) < 0.1
