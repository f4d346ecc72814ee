"""Views of an image, and the same views of a map of its features: cropped, mirrored, shifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.seeds import make_generator
from training.teachers.answers import resize_images
from training.upsampling.settings import MIN_SHARE


SAMPLES = 4  # our choice: points of a fine map per side of a coarse cell


class View(NamedTuple):
    """A square part of a square image.

    Attributes:
        top: First row over the image's side.
        left: First column over the image's side.
        side: Its side over the image's.
        is_mirrored: Whether it is flipped from left to right.
    """

    top: float
    left: float
    side: float
    is_mirrored: bool


WHOLE = View(0.0, 0.0, 1.0, False)


def draw_view(size_px: int, seed: int, *labels: int | str, largest: float = 1.0) -> View:
    """Return a random view, at most this share of an image's side, whose edges lie between its pixels."""
    generator = make_generator(seed, "view", *labels)
    share, row, col, flip = torch.rand(4, generator=generator).tolist()
    side = round(size_px * (MIN_SHARE + (largest - MIN_SHARE) * share))
    top, left = (round((size_px - side) * place) for place in (row, col))
    return View(top / size_px, left / size_px, side / size_px, flip < 0.5)


def view_of_image(pixel_values: Tensor, view: View, size_px: int) -> Tensor:
    """Return a view of images `(batch, 3, side, side)`, resized to `size_px` squared, antialiased."""
    height = pixel_values.shape[2]
    top, left, side = (round(height * share) for share in view[:3])
    crop = pixel_values[:, :, top : top + side, left : left + side]
    return resize_images(crop.flip(3) if view.is_mirrored else crop, (size_px, size_px))


def view_of_map(features: Tensor, views: Sequence[View], cells: int) -> Tensor:
    """Sample maps at the places that views show.

    Args:
        features: One map for each view, `(views, channels, rows, cols)`.
        views: What to show.
        cells: Points along a side.

    Returns:
        `(views, channels, cells, cells)`, bilinear.
    """
    # affine_grid's places go from -1 to 1 over the map; a row gives the map's x or y for a point of the view.
    theta = features.new_tensor(
        [
            [
                [-view.side if view.is_mirrored else view.side, 0.0, 2 * view.left + view.side - 1],
                [0.0, view.side, 2 * view.top + view.side - 1],
            ]
            for view in views
        ]
    )
    places = F.affine_grid(theta, [len(views), features.shape[1], cells, cells], align_corners=False)
    return F.grid_sample(features, places, padding_mode="border", align_corners=False)


class ViewReader(nn.Module):
    """What the teacher would say of a view, out of the fine map: samples of each cell, weighted by attention.

    It serves training only. A new one takes their mean.

    Args:
        feature_dim: Channels of the map.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(SAMPLES**2))
        self.content = nn.Conv2d(feature_dim, 1, 1, bias=False)  # a bias would cancel in the softmax
        nn.init.zeros_(self.content.weight)

    def forward(self, features: Tensor, views: Sequence[View], grid: int) -> Tensor:
        """Return maps of views, `(views, channels, grid, grid)`; see `view_of_map`."""
        samples = view_of_map(features, views, SAMPLES * grid)
        logits = F.pixel_unshuffle(self.content(samples), SAMPLES) + self.place.view(-1, 1, 1)
        weights = F.pixel_shuffle(logits.softmax(1), SAMPLES)
        return F.avg_pool2d(samples * weights, SAMPLES) * SAMPLES**2
