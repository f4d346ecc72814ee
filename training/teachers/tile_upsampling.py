"""Features finer than a teacher's own grid: its features of tiles of the image give detail to those of the whole.

This stands in for FeatSharp (https://arxiv.org/abs/2502.16025), which NVIDIA used from C-RADIOv3 on, and deviates from
it: FeatSharp joins the same two inputs, the map of the whole image and the stitched map of its tiles, by a transformer
block that is trained for each teacher and of which no weights are published. Here nothing is trained; `featsharp.py`
beside this file is for who trains one.
"""

import math

from torch import Tensor
from torch.nn import functional as F


GRID_TOLERANCE = 0.25
"""A wanted grid up to this share finer than the teacher's own is only resampled. Our choice: at 432 px, the finest of
its low sizes (27 cells, SigLIP2 has 24), C-RADIOv4 uses raw outputs; at 512 px (32 cells) and above, upsampled ones."""


def tiles_per_side(wanted_cells: int, own_cells: int) -> int:
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
    """Put tiles together again: the inverse of `cut_tiles`."""
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
