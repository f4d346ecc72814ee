"""Weights of classes in the loss, from how often they occur."""

from __future__ import annotations

from torch import Tensor


def balanced_weights(counts: Tensor) -> list[float]:
    """Return weights with which every class counts alike: total / (number of classes that occur * count).

    Args:
        counts: How often each class occurs, `(num_classes,)`. A class that does not occur gets the weight 1.

    References:
        "balanced" of scikit-learn, after King and Zeng, 2001, Logistic regression in rare events data.
    """
    occurring = counts > 0
    weights = counts.sum() / (occurring.sum() * counts.clamp(min=1))
    return weights.where(occurring, 1.0).tolist()
