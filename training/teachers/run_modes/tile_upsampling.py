"""Features finer than a teacher's own grid: its features of tiles of the image give detail to those of the whole.

This stands in for FeatSharp (https://arxiv.org/abs/2502.16025), which NVIDIA used from C-RADIOv3 on, and deviates from
it: FeatSharp joins the same two inputs, the map of the whole image and the stitched map of its tiles, by a transformer
block that is trained for each teacher and of which no weights are published. Here nothing is trained; `featsharp.py`
beside this file is for who trains one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from training.teachers.answers import TeacherOutput
from training.teachers.run_modes.base import FixedMode, RunNetwork, Size


GRID_TOLERANCE = 0.25
"""A wanted grid up to this share finer than the teacher's own is only resampled. Our choice: at 432 px, the finest of
its low sizes (27 cells, SigLIP2 has 24), C-RADIOv4 uses raw outputs; at 512 px (32 cells) and above, upsampled ones."""


class TiledMode(FixedMode):
    """Like "fixed"; a grid finer than the own is answered on a multiple of it, with the detail of tiles."""

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return the one size of the whole image, and where it is to be cut once more that of all tiles together."""
        num_tiles = tiles_per_side(math.sqrt(rows * cols), self.cells_per_side)  # as of the square of as many cells
        return tuple((self.side_px * count, self.side_px * count) for count in dict.fromkeys((1, num_tiles)))

    def answer_batch(self, images: Sequence[Tensor], run: RunNetwork) -> TeacherOutput:
        """Return the answer to whole images, its features made finer by each larger size."""
        whole, *larger = images
        summary, features = run(whole)
        for each in larger:
            num_tiles = each.shape[2] // self.side_px
            tiles = run(cut_tiles(each, num_tiles, num_tiles)).features
            features = self.join(features, stitch_tiles(tiles, num_tiles, num_tiles), each)
        return TeacherOutput(summary, features)

    def join(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return finer features.

        Args:
            whole: Features of whole images, `(batch, channels, rows, cols)`.
            tiles: The stitched ones of their tiles, `(batch, channels, factor * rows, factor * cols)`.
            images: The normalized images that were cut.

        Returns:
            The shape of `tiles`.
        """
        return add_detail(whole, tiles)


def tiles_per_side(wanted_cells: float, own_cells: int) -> int:
    """Return into how many tiles a side of the image is cut so that `wanted_cells` are (nearly) seen, at least 1."""
    return max(1, math.ceil(wanted_cells / own_cells - GRID_TOLERANCE))


def cut_tiles(maps: Tensor, per_column: int, per_row: int) -> Tensor:
    """Cut each map into equal tiles.

    Args:
        maps: `(batch, channels, per_column * height, per_row * width)`: pixels or features.
        per_column: Tiles below each other.
        per_row: Tiles beside each other.

    Returns:
        `(batch * per_column * per_row, channels, height, width)`: a map's tiles one after the other, row by row.
    """
    tiles = maps.unflatten(3, (per_row, -1)).unflatten(2, (per_column, -1))
    # (batch, channels, per_column, height, per_row, width) -> tiles first
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def stitch_tiles(tiles: Tensor, per_column: int, per_row: int) -> Tensor:
    """Put tiles together again: the inverse of `cut_tiles`.

    Args:
        tiles: `(batch * per_column * per_row, channels, height, width)`.
        per_column: Tiles below each other.
        per_row: Tiles beside each other.

    Returns:
        `(batch, channels, per_column * height, per_row * width)`.
    """
    rows = tiles.unflatten(0, (-1, per_column, per_row))
    # (batch, per_column, per_row, channels, height, width) -> each axis of tiles before its axis of pixels
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def add_detail(whole: Tensor, stitched: Tensor) -> Tensor:
    """Return the upsampled features of the whole image plus the detail that only its tiles show.

    Detail is what the stitched map loses when it is averaged down to the grid of `whole` and upsampled again. So the
    coarse part of the answer, with the context of the whole image, stays, and tiles that say no more change nothing.

    Args:
        whole: `(batch, channels, rows, cols)`.
        stitched: `(batch, channels, factor * rows, factor * cols)`.

    Returns:
        The shape of `stitched`.
    """
    grid = whole.shape[2:]
    coarse_difference = whole - F.interpolate(stitched, grid, mode="area")
    return stitched + F.interpolate(coarse_difference, stitched.shape[2:], mode="bilinear")
