import math

import pytest
import torch
from torch import Tensor

from training.targets.statistics import MIN_DISPERSION, SummaryDispersion


def cone(angle: float, num_vectors: int = 4000) -> Tensor:
    """Vectors at one angle to the first axis, of random lengths."""
    around = torch.nn.functional.normalize(torch.randn(num_vectors, 7), dim=-1)
    vectors = torch.cat([torch.full((num_vectors, 1), math.cos(angle)), math.sin(angle) * around], dim=1)
    return vectors * (0.5 + torch.rand(num_vectors, 1))


@pytest.mark.parametrize("angle", [0.2, 0.8, 1.4])
def test_dispersion_of_a_cone_is_its_squared_angle(angle: float) -> None:
    dispersion = SummaryDispersion(8)
    for part in cone(angle).chunk(4):
        dispersion.update(part)
    assert dispersion.value.item() == pytest.approx(angle**2, rel=0.05)
    assert dispersion.total[0] > 0.9 * dispersion.total.norm()


def test_scale_of_the_summaries_does_not_matter() -> None:
    summaries = cone(0.5)
    small, large = SummaryDispersion(8), SummaryDispersion(8)
    small.update(summaries)
    large.update(summaries * 1000)
    torch.testing.assert_close(small.value, large.value)


def test_identical_summaries_hit_the_floor_safely() -> None:
    dispersion = SummaryDispersion(8)
    assert dispersion.value == MIN_DISPERSION
    dispersion.update(torch.ones(4, 8))
    assert MIN_DISPERSION <= dispersion.value < 1e-5


def test_non_finite_batch_is_left_out() -> None:
    dispersion = SummaryDispersion(8)
    dispersion.update(cone(0.5))
    before = dispersion.value.clone()
    dispersion.update(torch.full((2, 8), float("inf")))
    assert torch.equal(dispersion.value, before)
