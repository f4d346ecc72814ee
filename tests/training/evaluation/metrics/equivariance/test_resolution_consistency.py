import pytest
import torch
from torch.nn import functional as F

from training.evaluation.metrics.equivariance.resolution_consistency import feature_consistency, map_agreement


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
