"""Whether a model says the same about one image at different resolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.extractors import FeatureExtractor, extract_features


def resolution_consistency(
    extractor: FeatureExtractor,
    images: Tensor,
    sizes_px: Sequence[int],
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> dict[int, float]:
    """Compare the dense features of every size with those of the largest.

    Args:
        extractor: The model in eval mode.
        images: Square RGB images, `(num_images, 3, size, size)`, uint8 or floats in [0, 1], at least as
            large as the largest size for a fair comparison.
        sizes_px: Sides at which to run the model, each valid for it; at least two.
        batch_size: Images per forward pass.
        device: Where the forward pass runs.

    Returns:
        Mean cosine similarity in [-1, 1] with the largest size, per smaller size.

    Raises:
        ValueError: If fewer than two different sizes are given.
    """
    sizes = sorted(set(sizes_px))
    if len(sizes) < 2:
        raise ValueError(f"sizes_px must name at least two different sizes, got {list(sizes_px)}")
    features = {}
    for size in sizes:
        resized = _shrunk(images, size)
        output = extract_features(extractor, resized, batch_size=batch_size, device=device, description=f"{size} px")
        features[size] = output.features
    return {size: feature_consistency(features[size], features[sizes[-1]]) for size in sizes[:-1]}


def feature_consistency(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine similarity of two feature maps of the same images, the larger one resampled.

    Args:
        features: `(num_images, dim, rows, cols)`, no larger than `reference`.
        reference: `(num_images, dim, more_rows, more_cols)`.

    Returns:
        Mean over images and positions, in [-1, 1].
    """
    reference = F.interpolate(reference, features.shape[-2:], mode="bilinear", antialias=True)
    return F.cosine_similarity(features, reference, dim=1).mean().item()


def _shrunk(images: Tensor, size: int) -> Tensor:
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
