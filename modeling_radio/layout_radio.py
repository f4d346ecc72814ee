"""Which tokens attend to each other: the whole image, or ViTDet windows over any grid."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


Segments = tuple[tuple[int, int], ...]
"""A sequence as consecutive runs `(count, length)`: `count` neighboring segments of `length` tokens each; a token
attends to its own segment only."""


def partition_windows(
    rows: int, cols: int, window_size: int, device: torch.device | None = None
) -> tuple[Tensor, Segments]:
    """Cut a `rows` x `cols` grid into windows of `window_size` x `window_size` tokens.

    Where the window does not divide the grid, the windows at the right and bottom edge are smaller, so that no
    padding and no mask is needed.

    Returns:
        The row-major index of each token, `(rows * cols,)`, window after window, and the windows as runs in that order:
        interior, right strip, bottom strip, corner, as far as they exist.

    References:
        ViTDet, section 3. https://arxiv.org/abs/2203.16527
    """
    full_rows, full_cols = rows - rows % window_size, cols - cols % window_size
    grid = torch.arange(rows * cols, device=device).view(rows, cols)
    regions = [
        (grid[:full_rows, :full_cols], window_size, window_size),
        (grid[:full_rows, full_cols:], window_size, cols - full_cols),
        (grid[full_rows:, :full_cols], rows - full_rows, window_size),
        (grid[full_rows:, full_cols:], rows - full_rows, cols - full_cols),
    ]
    orders, segments = [], []
    for region, height, width in regions:
        if region.numel():
            windows = region.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2)
            orders.append(windows.flatten())  # (window rows, window cols, height, width) -> tokens
            segments.append((region.numel() // (height * width), height * width))
    return torch.cat(orders), tuple(segments)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # kept for later passes, which may be trained with
def variable_lengths(segments: Segments, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Return where segments begin and end in a flattened batch, in the words of flash kernels."""
    lengths = [length for count, length in segments for _ in range(count)] * batch_size
    boundaries = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return dict(zip(names, (boundaries, boundaries, max(lengths), max(lengths)), strict=True))


@dataclass(frozen=True)
class AttentionLayout:
    """Attention pattern of one forward pass.

    Attributes:
        global_segments: Runs of the whole sequence in blocks with global attention.
        window_order: `(num_patches,)`, positions of the patch tokens in the sequence, window after window; `None`
            when every block is global. Prefix tokens sit out the windowed blocks (C-RADIOv4 3.2).
        window_segments: Runs of the sequence in `window_order`.
    """

    global_segments: Segments
    window_order: Tensor | None = None
    window_segments: Segments = ()

    @classmethod
    def for_grid(
        cls, rows: int, cols: int, num_prefix: int, window_size: int | None, device: torch.device
    ) -> "AttentionLayout":
        """Return the layout of a batch of images of one size."""
        global_segments = ((1, num_prefix + rows * cols),)
        if window_size is None:
            return cls(global_segments)
        order, segments = partition_windows(rows, cols, window_size, device)
        return cls(global_segments, num_prefix + order, segments)
