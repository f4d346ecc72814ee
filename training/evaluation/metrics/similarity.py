"""How alike two sets of features are that belong together: as they are, and whatever their basis."""

import torch
from torch import Tensor
from torch.nn import functional as F


RIDGE = 1e-4
"""Our choice: share of the mean variance that is added to each direction, so that none that hardly varies counts."""


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine of vectors, in [-1, 1].

    Args:
        features: `(num_vectors, dim)`, or maps `(num_images, dim, rows, cols)` of a vector for each position.
        reference: What they are compared with, of the same shape.
    """
    return F.cosine_similarity(features, reference, dim=1).mean().item()


def centered_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine about the reference's mean vector; shapes as in `mean_cosine`.

    Features of a network share a large mean, so what always answers that mean scores well on the plain cosine and zero
    here.
    """
    mean = reference.mean(dim=[axis for axis in range(reference.ndim) if axis != 1], keepdim=True)
    return mean_cosine(features - mean, reference - mean)


def canonical_correlation(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the mean canonical correlation of two models' features, on patches that the directions were not fit to.

    Args:
        train: Features of the same patches by the two models, `(num_tokens, dim)` and `(num_tokens, other_dim)`.
        test: The same of other patches.

    Returns:
        The mean over the directions of the narrower model, at most 1.

    References:
        SVCCA, https://arxiv.org/abs/1706.05806, without its truncation.
    """
    (first, first_mean), (second, second_mean) = (_whitening(each) for each in train)
    left, right = (train[0].double() - first_mean) @ first, (train[1].double() - second_mean) @ second
    rotations, _, directions = torch.linalg.svd(left.T @ right / len(left), full_matrices=False)
    one = (test[0].double() - first_mean) @ first @ rotations
    two = (test[1].double() - second_mean) @ second @ directions.T
    one, two = one - one.mean(0), two - two.mean(0)
    correlation = (one * two).sum(0) / (one.norm(dim=0) * two.norm(dim=0)).clamp(min=1e-12)
    return correlation.mean().item()


def linear_fidelity(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the share of the second model's variance that a linear map of the first explains, at most 1.

    Args:
        train: As in `canonical_correlation`.
        test: The same of other patches.
    """
    whitening, mean = _whitening(train[0])
    target_mean = train[1].double().mean(0)
    inputs = (train[0].double() - mean) @ whitening
    weights = inputs.T @ (train[1].double() - target_mean) / len(inputs)
    truth = test[1].double() - target_mean
    error = (test[0].double() - mean) @ whitening @ weights - truth
    return (1 - error.square().sum() / (truth - truth.mean(0)).square().sum()).item()


def _whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map to directions of unit variance, `(dim, dim)`, and the mean, `(dim,)`."""
    values = features.double()
    mean = values.mean(0)
    covariance = (values - mean).T @ (values - mean) / len(values)
    roots, directions = torch.linalg.eigh(covariance)
    return directions / (roots + RIDGE * roots.mean()).clamp(min=1e-12).sqrt(), mean
