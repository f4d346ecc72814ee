"""Where the things in images are: the first principal component of dense features, cut at zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


NEIGHBORHOOD = 5
"""Cells on a side over which a map is averaged before its maximum is taken, so that one odd cell is not chosen. Our
choice: a sixth of the side of a map of 32 cells."""
MARGIN = 0.25
"""Share of each side in which no place is chosen: a thing in the middle is seen whole. Our choice."""


def foreground_map(features: Tensor) -> Tensor:
    """Return how much each place is part of a thing: positive within things, negative around them.

    The first principal component over all places of all images. Its sign is that which makes the border of the images
    more negative than the rest: what is photographed is rarely at the border.

    Args:
        features: `(num_images, dim, rows, cols)`.

    Returns:
        `(num_images, rows, cols)`, of mean zero.

    References:
        The cut at zero is that of DINOv2's pictures (https://arxiv.org/abs/2304.07193, section 7.4 and figure 1), where
        the sign was chosen by eye; that the border is background is the prior of Wei et al., "Geodesic Saliency Using
        Background Priors", 2012.
    """
    tokens = features.movedim(1, -1).double()
    centered = tokens - tokens.mean(dim=(0, 1, 2))
    _, vectors = torch.linalg.eigh(torch.cov(centered.flatten(0, 2).T))  # ascending eigenvalues
    first = centered @ vectors[:, -1]
    border = torch.ones_like(first[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return (first if first[:, border].mean() <= 0 else -first).float()


def clearest(maps: Iterable[Tensor]) -> Tensor:
    """Return the dense features whose first principal component says most of them: it has most of their variance.

    Args:
        maps: At least one, each `(num_images, dim, rows, cols)`.
    """
    return max(maps, key=_share_of_first_component)


def most_salient_places(foreground: Tensor) -> list[tuple[int, int]]:
    """Return row and column of the place in the middle that is most part of a thing, for each image.

    Args:
        foreground: `(num_images, rows, cols)`.
    """
    padding = NEIGHBORHOOD // 2
    smooth = F.avg_pool2d(foreground[:, None], NEIGHBORHOOD, 1, padding, count_include_pad=False)[:, 0]
    rows, cols = foreground.shape[1:]
    top, left = int(rows * MARGIN), int(cols * MARGIN)
    middle = smooth[:, top : rows - top, left : cols - left]
    places = [divmod(int(place), middle.shape[2]) for place in middle.flatten(1).argmax(dim=1)]
    return [(top + row, left + col) for row, col in places]


def _share_of_first_component(features: Tensor) -> float:
    variances = torch.linalg.eigvalsh(torch.cov(features.movedim(1, -1).flatten(0, 2).double().T))
    return float(variances[-1] / variances.sum())
