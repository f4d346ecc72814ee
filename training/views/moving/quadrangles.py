"""Pixels of a quadrangle of an image as a rectangle: antialiased, where Pillow's own transform would not be."""

from __future__ import annotations

import numpy as np
from PIL import Image

from training.data.decoding import Size
from training.views.moving.motions import Matrix, from_square


SUPERSAMPLING = 2
"""Pixels that are read for each one of the result and direction, before they are averaged. Our choice: the result is
then as sharp as what is resized once."""


def cut_quadrangle(picture: Image.Image, corners: Matrix, size: Size) -> Image.Image:
    """Return what lies within four corners of an image, as a rectangle of a size.

    A dense image is first reduced, antialiased, to what is read of it; it is read bicubically at twice the density of
    the result, and reduced again.

    Args:
        picture: RGB.
        corners: `(4, 2)`: x and y in pixels of the result's upper left, upper right, lower right and lower left corner.
        size: Height and width of the result.
    """
    fine = (SUPERSAMPLING * size[1], SUPERSAMPLING * size[0])
    source, offset, scale = _reduced(picture, corners, fine)
    matrix = from_square((corners - offset) * scale) @ np.diag([1 / fine[0], 1 / fine[1], 1])
    read = source.transform(
        fine, Image.Transform.PERSPECTIVE, [float(entry) for entry in matrix.flat[:8]], Image.Resampling.BICUBIC
    )
    return read.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def extent(corners: Matrix) -> tuple[float, float]:
    """Return height and width of a quadrangle in pixels: of its opposite sides the shorter ones."""
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)  # upper, right, lower, left
    return float(min(sides[1], sides[3])), float(min(sides[0], sides[2]))


def _reduced(picture: Image.Image, corners: Matrix, fine: tuple[int, int]) -> tuple[Image.Image, Matrix, Matrix]:
    """Return the part of an image around corners, no denser than is read; where it begins, and how it was scaled."""
    height, width = extent(corners)
    density = max(1.0, min(width / fine[0], height / fine[1]))
    margin = 3 * density  # what a bicubic kernel reads beside
    low = np.floor((corners.min(0) - margin).clip(0))
    high = np.ceil(corners.max(0) + margin).clip(max=picture.size)
    sides = np.maximum(np.round((high - low) / density), 1).astype(int)
    part = picture.resize(tuple(sides.tolist()), Image.Resampling.BICUBIC, box=(*low, *high))
    return part, low, sides / (high - low)
