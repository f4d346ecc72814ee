"""Fidelity of features to a teacher's, and their consistency over shifts, sizes and positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.metrics.feature_model import Features
from modeling_radio.metrics.representation import centered_cosine, mean_cosine
from modeling_radio.training.losses.alignment import on_larger_grid


RIDGE = 1e-4
"""Our choice: share of the mean variance that is added to each direction, so that directions that hardly vary do not
count."""


def canonical_correlation(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the mean canonical correlation of two models' features, on patches other than those of the fit.

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


class Fidelity(NamedTuple):
    """Mean cosine similarities in [-1, 1] between an adaptor and its teacher.

    The `centered` pair first subtracts the teacher's mean vector from both sides; see `centered_cosine`.

    Attributes:
        summary: Over images; None if the teacher has no summary.
        features: Over all tokens of all images.
        centered_summary: As `summary`, about the teacher's mean summary.
        centered_features: As `features`, about the teacher's mean feature.
    """

    summary: float | None
    features: float
    centered_summary: float | None
    centered_features: float


def adaptor_fidelity(adaptor: Features, teacher: Features) -> Fidelity:
    """Compare an adaptor's output with its teacher's on the same images.

    Args:
        adaptor: The student's features in the teacher's space.
        teacher: The teacher's own features. The smaller of two different grids is resampled, as in training.
    """
    maps = on_larger_grid(adaptor.features, teacher.features)
    # (batch, dim, rows, cols) -> (tokens, dim)
    student, target = (each.flatten(2).transpose(1, 2).flatten(0, 1) for each in maps)
    summary = centered_summary = None
    if adaptor.summary is not None and teacher.summary is not None:
        summary = mean_cosine(adaptor.summary, teacher.summary)
        centered_summary = centered_cosine(adaptor.summary, teacher.summary)
    return Fidelity(
        summary=summary,
        features=mean_cosine(student, target),
        centered_summary=centered_summary,
        centered_features=centered_cosine(student, target),
    )


EQUIVARIANCE_RIDGE = 1e-3
"""Our choice of a penalty on unit features, so that the fit is stable where channels depend on each other."""


def fixed_pattern_energy(features: Tensor) -> float:
    """Return the share of the features' variance that is a pattern fixed to the grid.

    With `f(n, p)` the feature of image `n` at position `p` and `m` the mean over both,
    `sum_p |mean_n f(n, p) - m|^2 / P` over `sum_np |f(n, p) - m|^2 / (N P)`: the variance over positions of the mean
    feature over that of all features. 0 if no position differs from another on average, 1 if the image does not matter.
    `N` images that share nothing still leave about `1 / N`, so that many images of many kinds are needed.

    Args:
        features: `(num_images, dim, rows, cols)`, float, of at least one image that is not constant.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: If all features are equal.

    References:
        Our choice of a number for the fixed patterns of teachers that students learn, and that the shift-equivariant
        losses of C-RADIOv4, section 2.3, work against. https://arxiv.org/abs/2601.17237
    """
    values = features.double()
    centered = values - values.mean(dim=(0, 2, 3), keepdim=True)
    whole = centered.square().sum(1).mean()
    if whole == 0:
        raise ValueError("`features` must not all be equal: their variance is 0.")
    return (centered.mean(0).square().sum(0).mean() / whole).item()


def shift_error(features: Tensor, shifted: Tensor, shift: tuple[int, int]) -> float:
    """Return how far features of a shifted image are from the shifted features, over the overlap of both.

    With `f` the one map, `g` the other, `(r, c)` the shift and `m` the mean of `f` over the overlap, the mean of
    `|g(y, x) - f(y + r, x + c)|^2` over that of `|f(y + r, x + c) - m|^2`: the share of the variance that a shift
    destroys. 0 for a map that moves with its image, about 2 for two unrelated maps.

    Args:
        features: Feature maps of the images, `(num_images, dim, rows, cols)`.
        shifted: Maps of the same images `shift` patches further down and right: position `(y, x)` shows the same as
            `(y + shift[0], x + shift[1])` of `features`. Same shape.
        shift: Rows and columns, in patches; negative ones are up and left.

    Returns:
        The error, at least 0. Dimensionless.

    Raises:
        ValueError: If the shift leaves no overlap, or `features` do not vary in it.

    References:
        Our choice: the normalized error that the shift-equivariant losses of C-RADIOv4, section 2.3, lower.
        https://arxiv.org/abs/2601.17237
    """
    rows, cols = features.shape[2:]
    if abs(shift[0]) >= rows or abs(shift[1]) >= cols:
        raise ValueError(f"`shift` must leave an overlap of maps of {rows} x {cols} patches, got {shift}.")
    expected = _overlap(features, shift).double()
    actual = _overlap(shifted, (-shift[0], -shift[1])).double()
    variance = (expected - expected.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    if variance == 0:
        raise ValueError("`features` must not all be equal where both maps see the image: their variance is 0.")
    return ((actual - expected).square().mean() / variance).item()


def _overlap(features: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return the part of a map that a map moved by `shift` also shows."""
    rows, cols = features.shape[2:]
    return features[:, :, max(shift[0], 0) : rows + min(shift[0], 0), max(shift[1], 0) : cols + min(shift[1], 0)]


def feature_consistency(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Compare two feature maps of the same images, the larger one resampled.

    Args:
        features: `(num_images, dim, rows, cols)`, no larger than `reference`.
        reference: `(num_images, dim, more_rows, more_cols)`.

    Returns:
        The mean cosine over all positions of all images, in [-1, 1], and the same about the mean of the reference.
    """
    reference = F.interpolate(reference, features.shape[-2:], mode="bilinear", antialias=True)
    return mean_cosine(features, reference), centered_cosine(features, reference)


def map_agreement(features: Tensor, reference: Tensor, mean: Tensor) -> Tensor:
    """Compare two feature maps of one image, the larger one resampled.

    Args:
        features: `(dim, rows, cols)`, no larger than `reference`.
        reference: `(dim, more_rows, more_cols)`.
        mean: Mean of the reference over all images, `(dim,)`.

    Returns:
        Two mean cosines over positions, in [-1, 1]: plain, and about the mean; see `centered_cosine`.
    """
    small = F.interpolate(reference[None], features.shape[-2:], mode="bilinear", antialias=True)[0]
    center = mean[:, None, None]
    plain = F.cosine_similarity(features, small, dim=0).mean()
    return torch.stack([plain, F.cosine_similarity(features - center, small - center, dim=0).mean()])


def position_r2(train: Tensor, test: Tensor) -> float:
    """Return the share of the variance of positions that a linear map of unit features explains, at most 1.

    High values mean that the features of a patch encode its position more than its content. 0 if they do not, below 0
    if the linear map is worse than the mean position.

    Args:
        train: Feature maps that the linear map is fit to, `(num_images, dim, rows, cols)`.
        test: Feature maps of other images that it is measured on; the same shape but for the number of images.

    References:
        After the position predictor among NVIDIA's examples, as described; least squares is our choice.
        https://github.com/NVlabs/RADIO
    """
    inputs, targets = _tokens_of_map(train), _positions(train)
    gram = inputs.T @ inputs / len(inputs) + EQUIVARIANCE_RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, inputs.T @ targets / len(inputs))
    truth = _positions(test)
    error = (_tokens_of_map(test) @ weights - truth).square().sum()
    return (1 - error / (truth - truth.mean(0)).square().sum()).item()


def _tokens_of_map(maps: Tensor) -> Tensor:
    """Return unit features and a constant 1, `(num_tokens, dim + 1)`."""
    tokens = F.normalize(maps.double(), dim=1).movedim(1, -1).flatten(0, -2)
    return F.pad(tokens, (0, 1), value=1.0)


def _positions(maps: Tensor) -> Tensor:
    """Return row and column of each token in [-1, 1], `(num_tokens, 2)`."""
    axes = [torch.linspace(-1, 1, length, dtype=torch.float64) for length in maps.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return grid.repeat(len(maps), 1)
