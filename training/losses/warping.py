"""Features read where a homography says, with gradients to what is read; exact where it shifts by whole cells."""

import torch
from torch import Tensor
from torch.nn import functional as F


FRACTIONS = 2**20
"""Parts of a cell that positions are rounded to: far less than features differ by, and more than float64 is off by, so
that a shift by whole cells copies tokens, bit for bit."""


def warp(features: Tensor, homography: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return maps as they look in the frame of another crop, bilinear, and where that crop shows what they hold.

    Args:
        features: `(batch, C, rows, cols)`.
        homography: `(batch, 3, 3)`, from the unit square of the other crop to that of these maps, (x, y, 1) each.
        grid: Rows and columns of the other crop.

    Returns:
        `(batch, C, *grid)`, and `(batch, *grid)` bool: positions that lie between the middles of these maps' cells.
        Elsewhere the maps repeat their border.
    """
    batch, channels, rows, cols = features.shape
    x, y, is_before = _unit_positions(homography, grid)
    x, y = _rounded(x * cols - 0.5), _rounded(y * rows - 0.5)
    inside = is_before & (x >= 0) & (x <= cols - 1) & (y >= 0) & (y <= rows - 1)
    x, y = x.nan_to_num(0).clamp(0, cols - 1), y.nan_to_num(0).clamp(0, rows - 1)
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=cols - 1), (top + 1).clamp(max=rows - 1)
    first = torch.arange(batch, device=features.device)[:, None, None] * rows * cols
    places = torch.stack([first + row * cols + col for row in (top, bottom) for col in (left, right)], dim=-1)
    shares = torch.stack([v * h for v in (1 - down, down) for h in (1 - across, across)], dim=-1)
    tokens = features.movedim(1, -1).reshape(-1, channels)
    read = F.embedding_bag(
        places.flatten(0, 2), tokens, per_sample_weights=shares.flatten(0, 2).to(tokens.dtype), mode="sum"
    )
    return read.view(batch, *grid, channels).movedim(-1, 1), inside


def _unit_positions(homography: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a homography takes the middles of a grid's cells, `(batch, *grid)`: x, y, and whether it can."""
    rows, cols = ((torch.arange(side, dtype=torch.float64, device=homography.device) + 0.5) / side for side in grid)
    y, x = torch.meshgrid(rows, cols, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    moved = torch.einsum("bij,rcj->brci", homography.double(), points)
    depth = moved[..., 2]
    return moved[..., 0] / depth, moved[..., 1] / depth, depth > 0


def _rounded(positions: Tensor) -> Tensor:
    return (positions * FRACTIONS).round() / FRACTIONS
