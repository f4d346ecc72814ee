"""How features move with the image, and what of them does not: fixed patterns, shifts, sizes, positions."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.metrics.similarity import centered_cosine, mean_cosine


RIDGE = 1e-3
"""Our choice of a penalty on unit features, so that the fit is stable where channels depend on each other."""


def fixed_pattern_energy(features: Tensor) -> float:
    """Return the share of the features' variance that is a pattern fixed to the grid.

    With `f(n, p)` the feature of image `n` at position `p` and `m` the mean over both,
    `sum_p |mean_n f(n, p) - m|^2 / P` over `sum_np |f(n, p) - m|^2 / (N P)`: the variance over positions of the mean
    feature over that of all features. 0 where no position differs from another on average, 1 where the image does not
    matter. `N` images that share nothing still leave about `1 / N`, which is why many, of many kinds, are needed.

    Args:
        features: `(num_images, dim, rows, cols)`, float, of at least one image that is not constant.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: If it is no such map, or all features are equal.

    References:
        Our choice of a number for the fixed patterns that teachers have and students learn, which the shift-equivariant
        losses of C-RADIOv4, section 2.3, are against. https://arxiv.org/abs/2601.17237
    """
    if features.ndim != 4 or not features.numel():
        raise ValueError(
            "`features` must have the shape (num_images, dim, rows, cols), none of them 0, got "
            f"{tuple(features.shape)}."
        )
    values = features.double()
    centered = values - values.mean(dim=(0, 2, 3), keepdim=True)
    whole = centered.square().sum(1).mean()
    if whole == 0:
        raise ValueError("`features` must not all be equal: their variance is 0.")
    return (centered.mean(0).square().sum(0).mean() / whole).item()


def shift_error(features: Tensor, shifted: Tensor, shift: tuple[int, int]) -> float:
    """Return how far features of a shifted image are from the shifted features, over what both see.

    With `f` the one map, `g` the other, `(r, c)` the shift and `m` the mean of `f` over the overlap, the mean of
    `|g(y, x) - f(y + r, x + c)|^2` over that of `|f(y + r, x + c) - m|^2`: the share of the variance that a shift
    destroys. 0 for a map that moves with its image, about 2 for two maps that have nothing in common.

    Args:
        features: Of the images, `(num_images, dim, rows, cols)`.
        shifted: Of the same images seen `shift` patches further down and right: position `(y, x)` shows what
            `(y + shift[0], x + shift[1])` of `features` does. Same shape.
        shift: Rows and columns, in patches; negative ones are up and left.

    Returns:
        The error, at least 0. Dimensionless.

    Raises:
        ValueError: If the shapes differ, the shift leaves no overlap, or `features` do not vary in it.

    References:
        Our choice: the normalized error of what the shift-equivariant losses of C-RADIOv4, section 2.3, demand.
        https://arxiv.org/abs/2601.17237
    """
    if features.ndim != 4 or features.shape != shifted.shape:
        raise ValueError(
            "`shifted` must have the shape (num_images, dim, rows, cols) of `features`, got "
            f"{tuple(shifted.shape)} and {tuple(features.shape)}."
        )
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
    """Return the part of a map that one moved by `shift` also shows."""
    rows, cols = features.shape[2:]
    return features[:, :, max(shift[0], 0) : rows + min(shift[0], 0), max(shift[1], 0) : cols + min(shift[1], 0)]


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


def position_r2(train: Tensor, test: Tensor) -> float:
    """Return the share of the variance of positions that a linear map of unit features explains, at most 1.

    High values mean that a patch tells where it is rather than what it shows. 0 for answers that do not, below 0 for
    answers that are worse than the mean.

    Args:
        train: Maps that the map is fit to, `(num_images, dim, rows, cols)`.
        test: Maps that it is measured on, of other images, the same shape but for their number.

    References:
        After the position predictor among NVIDIA's examples, as described; least squares is our choice.
        https://github.com/NVlabs/RADIO
    """
    inputs, targets = _tokens(train), _positions(train)
    gram = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, inputs.T @ targets / len(inputs))
    truth = _positions(test)
    error = (_tokens(test) @ weights - truth).square().sum()
    return (1 - error / (truth - truth.mean(0)).square().sum()).item()


def _tokens(maps: Tensor) -> Tensor:
    """Return unit features with a constant, `(num_tokens, dim + 1)`."""
    tokens = F.normalize(maps.double(), dim=1).movedim(1, -1).flatten(0, -2)
    return F.pad(tokens, (0, 1), value=1.0)


def _positions(maps: Tensor) -> Tensor:
    """Return row and column of each token in [-1, 1], `(num_tokens, 2)`."""
    axes = [torch.linspace(-1, 1, length, dtype=torch.float64) for length in maps.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return grid.repeat(len(maps), 1)
