"""Mosaics: several small images in one pass of a teacher that runs at one large size only.

Every image is resized so that one cell of the teacher covers what one cell of the student covers, as many as fit are
laid on the teacher's canvas, and the answer is cut apart again. Cheaper than one pass per image, and better: the images
meet the teacher's position artifacts in changing places (RADIOv2.5, finding 3, https://arxiv.org/abs/2412.07679).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from training.recipe_sections.networks import RunOptions
from training.teachers.answers import TeacherOutput
from training.teachers.run_modes.base import OneSizeMode, RunNetwork, Size


Cells = tuple[int, int]
"""Rows and columns of cells of an image."""


class MosaicMode(OneSizeMode):
    """Many images in a pass, for a teacher without a summary.

    An image with more cells than the canvas along a side is shrunk to as many, in both directions alike.
    """

    def choose_size(self, options: RunOptions) -> int:
        """Return the side of a canvas; a summary would be one of many images."""
        if self.traits.has_summary:
            raise self.traits.error(
                "`run_mode` must be 'native' or 'fixed' for a teacher with a summary, got 'mosaic'."
            )
        return super().choose_size(options)

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return one size, a patch for each cell."""
        patch, scale = self.traits.patch_size, min(1.0, self.cells_per_side / max(rows, cols))
        return ((max(1, round(rows * scale)) * patch, max(1, round(cols * scale)) * patch),)

    def answer(self, groups: Sequence[Sequence[Tensor]], run: RunNetwork) -> Iterable[TeacherOutput]:
        """Yield the answers of all groups, out of as few canvases as they fit on."""
        patch = self.traits.patch_size
        images = [image for (group,) in groups for image in group]
        layout = MosaicLayout(
            self.cells_per_side, [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
        )
        features = iter(slice_mosaics(run(pack_mosaics(images, layout, patch)).features, layout))
        for (group,) in groups:
            yield TeacherOutput(None, torch.stack(list(islice(features, len(group)))))


class Place(NamedTuple):
    """Where the upper left cell of an image lies: on which canvas, in which row and column of it."""

    canvas: int
    row: int
    col: int


class MosaicLayout:
    """How images lie on square canvases: on shelves, the tallest first, each on the first shelf that has room for it.

    Cells that are left over keep the images of a shelf, and the shelves of a canvas, apart.

    Args:
        canvas_cells: Cells along a side of a canvas.
        images: Rows and columns of cells of each image.

    Attributes:
        places: Of each image.
        num_canvases: How many canvases there are.

    Raises:
        ValueError: If an image does not fit.

    References:
        First-fit decreasing height: Coffman et al., "Performance bounds for level-oriented two-dimensional packing
        algorithms", SIAM J. Comput. 9 (1980).
    """

    def __init__(self, canvas_cells: int, images: Sequence[Cells]) -> None:
        for rows, cols in images:
            if not 1 <= min(rows, cols) <= max(rows, cols) <= canvas_cells:
                raise ValueError(
                    f"`images` must have 1 to {canvas_cells} cells a side, as the canvas has, got {rows} x {cols}."
                )
        self.canvas_cells, self.images = canvas_cells, list(images)
        by_height = sorted(range(len(images)), key=lambda image: (-images[image][0], -images[image][1], image))
        shelves = _first_fit(by_height, [images[image][1] for image in by_height], canvas_cells)
        heights = [images[shelf[0]][0] for shelf in shelves]
        canvases = _first_fit(list(range(len(shelves))), heights, canvas_cells)
        self.num_canvases = len(canvases)
        places: dict[int, Place] = {}
        for canvas, members in enumerate(canvases):
            tops = _spread([heights[shelf] for shelf in members], canvas_cells)
            for top, shelf in zip(tops, members, strict=True):
                lefts = _spread([images[image][1] for image in shelves[shelf]], canvas_cells)
                for left, image in zip(lefts, shelves[shelf], strict=True):
                    places[image] = Place(canvas, top, left)
        self.places = [places[image] for image in range(len(images))]


def pack_mosaics(images: Sequence[Tensor], layout: MosaicLayout, cell_px: int) -> Tensor:
    """Lay images on canvases.

    Args:
        images: Each `(channels, rows * cell_px, cols * cell_px)`, normalized: spare area is 0, the mean color.
        layout: Where they lie.
        cell_px: Pixels along a side of a cell.

    Returns:
        `(num_canvases, channels, canvas_cells * cell_px, canvas_cells * cell_px)`.
    """
    side = layout.canvas_cells * cell_px
    canvases = images[0].new_zeros(layout.num_canvases, len(images[0]), side, side)
    for image, (canvas, row, col) in zip(images, layout.places, strict=True):
        top, left = row * cell_px, col * cell_px
        canvases[canvas, :, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvases


def slice_mosaics(features: Tensor, layout: MosaicLayout) -> list[Tensor]:
    """Cut the images' features, each `(channels, rows, cols)`, out of those of the canvases.

    Args:
        features: `(num_canvases, channels, canvas_cells, canvas_cells)`.
        layout: Where the images lie.
    """
    return [
        features[canvas, :, row : row + rows, col : col + cols]
        for (canvas, row, col), (rows, cols) in zip(layout.places, layout.images, strict=True)
    ]


def _first_fit(items: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put each item into the first bin that still has room for its length, or into a new one."""
    bins: list[list[int]] = []
    left: list[int] = []
    for item, length in zip(items, lengths, strict=True):
        place = next((place for place, space in enumerate(left) if space >= length), len(bins))
        if place == len(bins):
            bins.append([])
            left.append(room)
        bins[place].append(item)
        left[place] -= length
    return bins


def _spread(lengths: Sequence[int], room: int) -> list[int]:
    """Return where intervals begin that lie beside each other in a room, with its spare space behind each of them."""
    gap = (room - sum(lengths)) // len(lengths)
    return [sum(lengths[:place]) + place * gap for place in range(len(lengths))]
