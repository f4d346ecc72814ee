import pytest
import torch
from torch.nn import functional as F

from training.evaluation.extractors import Features
from training.evaluation.metrics.resolution_consistency import feature_consistency, resolution_consistency


def _color_extractor(pixel_values: torch.Tensor) -> Features:
    return Features(None, F.avg_pool2d(pixel_values, 8))


def _position_extractor(pixel_values: torch.Tensor) -> Features:
    """Answers by the size of its input, the opposite of consistent."""
    rows = pixel_values.shape[2] // 8
    features = torch.zeros(len(pixel_values), 32, rows, rows)
    features[:, rows] = 1
    return Features(None, features)


@pytest.fixture
def smooth_images() -> torch.Tensor:
    coarse = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)


def test_equal_maps_are_fully_consistent():
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert feature_consistency(features, features) == pytest.approx((1.0, 1.0))


def test_a_mean_that_all_features_share_flatters_the_plain_cosine_only():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    consistency = feature_consistency(first + 100, second + 100)
    assert consistency.features > 0.99
    assert abs(consistency.centered_features) < 0.4


def test_the_larger_map_is_resampled():
    coarse = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, scale_factor=2, mode="nearest")
    assert feature_consistency(coarse, fine) == pytest.approx((1.0, 1.0), abs=0.15)
    assert feature_consistency(coarse, fine.flip(2)).features < 0.7


def test_average_colors_survive_a_change_of_resolution(smooth_images):
    consistency = resolution_consistency(_color_extractor, smooth_images, [32, 64, 48])
    assert list(consistency) == [32, 48]
    assert min(cosine for both in consistency.values() for cosine in both) > 0.97


def test_features_that_depend_on_the_size_do_not(smooth_images):
    assert resolution_consistency(_position_extractor, smooth_images, [32, 64])[32].features == pytest.approx(0.0)


def test_one_size_is_refused(smooth_images):
    with pytest.raises(ValueError, match="at least two different sizes"):
        resolution_consistency(_color_extractor, smooth_images, [32, 32])
