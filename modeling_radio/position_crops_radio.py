"""AM-RADIO's cropped position embeddings: in training each image sees a random part of the table of positions.

References:
    AM-RADIO, appendix C. https://arxiv.org/abs/2312.06709
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# A crop covers 10 % of the table's area or more, with an aspect ratio between 3:4 and 4:3.
MIN_CROP_AREA = 0.1
MAX_CROP_ASPECT = 4 / 3
POSITION_DRAWS = 4
"""Random numbers that decide one image's crop: scale, aspect ratio, column, row."""


def sample_crops(table: Tensor, side: int, grid: tuple[int, int], uniform: Tensor) -> Tensor:
    """Return position embeddings `(batch, rows * cols, hidden)` in float32, of one random crop of a table per image.

    Args:
        table: Position embeddings, `(side * side, hidden)`.
        side: Rows and columns of the table.
        grid: Rows and columns of patches of each image, over which its crop is stretched.
        uniform: Numbers in [0, 1) that decide the crops, `(batch, POSITION_DRAWS)`.
    """
    rows, cols = grid
    scale = math.sqrt(MIN_CROP_AREA) + uniform[:, 0] * (1 - math.sqrt(MIN_CROP_AREA))
    aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(MAX_CROP_ASPECT))
    extent = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1)  # (batch, xy), of the table
    offset = uniform[:, 2:] * (1 - extent)
    x, x_shares = _neighbors(_spread(cols, offset[:, :1], extent[:, :1]), side)
    y, y_shares = _neighbors(_spread(rows, offset[:, 1:], extent[:, 1:]), side)
    # (batch, rows, cols, two rows of the table, two columns of it)
    index = y[:, :, None, :, None] * side + x[:, None, :, None, :]
    shares = y_shares[:, :, None, :, None] * x_shares[:, None, :, None, :]
    # Not grid_sample, whose backward pass writes a whole table for every image.
    sampled = F.embedding_bag(index.view(-1, 4), table.float(), mode="sum", per_sample_weights=shares.view(-1, 4))
    return sampled.unflatten(0, (len(uniform), rows * cols))


def _spread(count: int, start: Tensor, extent: Tensor) -> Tensor:
    """Return `count` places from each start over its extent, `(batch, count)` from `(batch, 1)`."""
    return torch.linspace(0, 1, count, device=start.device) * extent + start


def _neighbors(places: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the two of `side` grid points around each place in [0, 1], and their shares in it, `(..., 2)` each."""
    cells = (places * (side - 1)).clamp(0, side - 1)
    lower = cells.floor()
    upper_share = cells - lower
    points = torch.stack([lower, lower + 1], dim=-1).long().clamp(max=side - 1)
    return points, torch.stack([1 - upper_share, upper_share], dim=-1)
