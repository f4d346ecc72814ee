"""How alike every place of an image is to a marked one, by dense features: all of them, not three components."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional as F


COLORS = "inferno"
"""Our choice: grows in brightness evenly, also to the color-blind."""
MARK = (0.0, 1.0, 0.4)
"""Our choice of RGB, which `COLORS` does not have."""
MARK_RADIUS = 0.045
"""Of the ring, in shares of the image's side; our choice."""


def similarity_maps(features: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Return the cosines of all places with one of the same image, about the mean over all images.

    Args:
        features: `(num_images, dim, rows, cols)`.
        places: Row and column, for each image.

    Returns:
        `(num_images, rows, cols)`, 1 at the places themselves.
    """
    centered = F.normalize(features - features.mean(dim=(0, 2, 3), keepdim=True), dim=1)
    marked = torch.stack([each[:, row, col] for each, (row, col) in zip(centered, places, strict=True)])
    return torch.einsum("ndhw,nd->nhw", centered, marked)


def similarity_colors(similarity: Tensor) -> Tensor:
    """Return cosines `(num_images, rows, cols)` as RGB in [0, 1], `(num_images, rows, cols, 3)`: black is 0 or less."""
    rgba = matplotlib.colormaps[COLORS](similarity.clamp(0, 1).numpy())
    return torch.from_numpy(rgba[..., :3]).float()


def marked(images: Tensor, places: Sequence[tuple[int, int]], grid: Sequence[int]) -> Tensor:
    """Return RGB images in [0, 1] with a ring around a place of each.

    Args:
        images: `(num_images, height, width, 3)`.
        places: Row and column, for each image.
        grid: Rows and columns that the places are counted in.
    """
    height, width = images.shape[1:3]
    radius, thickness = MARK_RADIUS * height, max(1.0, MARK_RADIUS * height / 4)
    ys, xs = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    result = images.clone()
    for image, (row, col) in zip(result, places, strict=True):
        distances = torch.hypot(ys - (row + 0.5) * height / grid[0], xs - (col + 0.5) * width / grid[1])
        image[(distances - radius).abs() < thickness * 1.6] = 0.0  # a dark edge, to be seen on anything
        image[(distances - radius).abs() < thickness] = torch.tensor(MARK)
    return result
