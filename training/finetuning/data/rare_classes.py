"""What helps rare classes: more of their images in an epoch, or more weight in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.finetuning.settings import BALANCED


def image_weights(sampler: str, classes: Sequence[Sequence[int]], num_classes: int, threshold: float) -> Tensor:
    """Return how often each image shall be seen an epoch, on average, `(num_images,)`.

    Args:
        sampler: "balanced": every class is seen as often as the others, and an epoch has as many images as before.
            "repeat-factor": an image of a class whose share f of all images is below the threshold t is seen
            sqrt(t / f) times, by its rarest class, and all others once, so that an epoch grows.
        classes: Ids of what each image shows.
        num_classes: Number of classes.
        threshold: The share t.

    Raises:
        ValueError: If "balanced" is asked for images that show no class or several.

    References:
        LVIS, appendix B.2. https://arxiv.org/abs/1908.03195
    """
    shown = torch.tensor([number for image in classes for number in set(image)], dtype=torch.long)
    counts = shown.bincount(minlength=num_classes)
    if sampler == BALANCED:
        several = next((len(image) for image in classes if len(image) != 1), None)
        if several is not None:
            raise ValueError(
                f"`sampler` 'balanced' is for one class an image, but one has {several}: choose 'repeat-factor'."
            )
        shares = len(classes) / (counts.count_nonzero() * counts.clamp(min=1).double())
        return shares[[image[0] for image in classes]]
    factors = (threshold * len(classes) / counts.clamp(min=1).double()).sqrt().clamp(min=1)
    return torch.stack([factors[list(image)].max() if image else factors.new_ones(()) for image in classes])


def draw_images(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images of an epoch in no order, each as often as its weight says, rounded up or down at random.

    Systematic sampling: equally spaced points, shifted at random, on the line that the weights divide.

    Args:
        weights: How often each is wanted on average, `(num_images,)`.
        generator: Draws the shift and the order on the line.

    Returns:
        Indices, as many as the weights' sum, rounded.
    """
    order = torch.randperm(len(weights), generator=generator)
    ends = weights[order].cumsum(0)
    count = epoch_length(weights)
    points = (torch.arange(count) + torch.rand((), generator=generator)) * (ends[-1] / count)
    return order[torch.searchsorted(ends, points.to(ends), right=True).clamp(max=len(weights) - 1)]


def epoch_length(weights: Tensor) -> int:
    """Return how many images an epoch has."""
    return max(round(float(weights.sum())), 1)


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
