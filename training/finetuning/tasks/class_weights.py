"""Weights of classes in the loss, from how often they occur."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.finetuning.settings import BALANCED


def choose_weights(
    asked: str | tuple[float, ...], class_names: tuple[str, ...], count: Callable[[], Tensor]
) -> list[float]:
    """Return one weight for each class.

    Args:
        asked: "balanced" or the weights.
        class_names: The classes.
        count: Returns how often each class occurs in the training images, `(num_classes,)`.

    Raises:
        ValueError: If there are more or fewer weights than classes.
    """
    if asked == BALANCED:
        return balanced_weights(count())
    if len(asked) != len(class_names):
        raise ValueError(
            f"`class_weights` must have one number for each of the {len(class_names)} classes "
            f"({', '.join(class_names)}), got {len(asked)}."
        )
    return [float(weight) for weight in asked]


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
