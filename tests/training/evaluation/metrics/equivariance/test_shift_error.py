import pytest
import torch

from training.evaluation.metrics.equivariance.shift_error import shift_error


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
