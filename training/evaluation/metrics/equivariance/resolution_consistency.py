"""Whether a model says the same about one image at different resolutions."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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


def feature_consistency(features: Tensor, reference: Tensor) -> Consistency:
    """Compare two feature maps of the same images, the larger one resampled.

    Args:
        features: `(num_images, dim, rows, cols)`, no larger than `reference`.
        reference: `(num_images, dim, more_rows, more_cols)`.
    """
    reference = F.interpolate(reference, features.shape[-2:], mode="bilinear", antialias=True)
    return Consistency(mean_cosine(features, reference), centered_cosine(features, reference))


def map_agreement(features: Tensor, reference: Tensor, mean: Tensor) -> Tensor:
    """Compare two feature maps of one image, the larger one resampled.

    Args:
        features: `(dim, rows, cols)`, no larger than `reference`.
        reference: `(dim, more_rows, more_cols)`.
        mean: Of the reference over all images, `(dim,)`.

    Returns:
        Two mean cosines over positions, in [-1, 1]: as they are, and about the mean. Features of a network share a
        large mean, so a model that hardly looks at the image scores well on the plain cosine.
    """
    small = F.interpolate(reference[None], features.shape[-2:], mode="bilinear", antialias=True)[0]
    center = mean[:, None, None]
    plain = F.cosine_similarity(features, small, dim=0).mean()
    return torch.stack([plain, F.cosine_similarity(features - center, small - center, dim=0).mean()])
