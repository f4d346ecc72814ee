"""How well a score separates two kinds of images."""

import torch
from torch import Tensor


def weighted_auroc(scores: Tensor, is_positive: Tensor, weights: Tensor) -> Tensor:
    """Return the area under the ROC curve for several weightings of the same images, `(num_weightings,)`.

    The probability that a positive image has a higher score than a negative one; ties count half.

    Args:
        scores: `(num_images,)`.
        is_positive: Which ones should score high, bool `(num_images,)`.
        weights: How often each image counts, `(num_weightings, num_images)`.
    """
    values, places = torch.unique(scores, return_inverse=True)
    shape = (len(weights), len(values))
    index = places.expand(len(weights), -1)
    positive = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * is_positive)
    negative = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * ~is_positive)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
