"""Whether a model says the same about one image at different resolutions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.extractors import FeatureExtractor, extract_features
from training.evaluation.metrics.feature_cosine.cosines import centered_cosine, mean_cosine


class Consistency(NamedTuple):
    """Mean cosine similarities in [-1, 1] between the features of an image at two sizes.

    Attributes:
        features: Over all positions of all images.
        centered_features: The same about the mean feature of the larger size. Features of a network share a large mean,
            so a model that hardly looks at the image scores well on the plain cosine.
    """

    features: float
    centered_features: float


def resolution_consistency(
    extractor: FeatureExtractor,
    images: Tensor,
    sizes_px: Sequence[int],
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> dict[int, Consistency]:
    """Compare the dense features of every size with those of the largest.

    Args:
        extractor: The model in eval mode.
        images: Square RGB images, `(num_images, 3, size, size)`, uint8 or floats in [0, 1], at least as
            large as the largest size for a fair comparison.
        sizes_px: Sides at which to run the model, each valid for it; at least two.
        batch_size: Images per forward pass.
        device: Where the forward pass runs.

    Returns:
        The agreement with the largest size, per smaller size.

    Raises:
        ValueError: If fewer than two different sizes are given.
    """
    sizes = sorted(set(sizes_px))
    if len(sizes) < 2:
        raise ValueError(f"`sizes_px` must name at least two different sizes, got {list(sizes_px)}.")
    features = {}
    for size in sizes:
        resized = _shrunk(images, size)
        output = extract_features(extractor, resized, batch_size=batch_size, device=device, description=f"{size} px")
        features[size] = output.features
    return {size: feature_consistency(features[size], features[sizes[-1]]) for size in sizes[:-1]}


def feature_consistency(features: Tensor, reference: Tensor) -> Consistency:
    """Compare two feature maps of the same images, the larger one resampled.

    Args:
        features: `(num_images, dim, rows, cols)`, no larger than `reference`.
        reference: `(num_images, dim, more_rows, more_cols)`.
    """
    reference = F.interpolate(reference, features.shape[-2:], mode="bilinear", antialias=True)
    return Consistency(mean_cosine(features, reference), centered_cosine(features, reference))


def _shrunk(images: Tensor, size: int) -> Tensor:
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
