"""Which tokens attend to each other: the whole image, or ViTDet windows over any grid."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


Segments = tuple[tuple[int, int], ...]
"""A sequence as consecutive runs `(count, length)`: `count` neighbouring segments of `length` tokens each; a token
attends to its own segment only."""


@dataclass(frozen=True)
class WindowPartition:
    """A token grid cut into windows.

    Attributes:
        order: `(rows * cols,)`, the row-major index of each token, window after window.
        segments: The windows as runs in that order: interior, right strip, bottom strip, corner, as far as they exist.
    """

    order: Tensor
    segments: Segments


def partition_windows(rows: int, cols: int, window_size: int, device: torch.device | None = None) -> WindowPartition:
    """Cut a `rows` x `cols` grid into windows of `window_size` x `window_size` tokens.

    Where the window does not divide the grid, the windows at the right and bottom edge are smaller, so that no
    padding and no mask is needed.

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
    return WindowPartition(torch.cat(orders), tuple(segments))


@lru_cache(maxsize=8)
def segment_boundaries(segments: Segments, batch_size: int, device: torch.device) -> Tensor:
    """Return where segments begin and end in a flattened batch, `(batch * count + 1,)` int32, as flash kernels ask."""
    lengths = [length for count, length in segments for _ in range(count)] * batch_size
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


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
        """Layout of a batch of equally large images."""
        global_segments = ((1, num_prefix + rows * cols),)
        if window_size is None:
            return cls(global_segments)
        windows = partition_windows(rows, cols, window_size, device)
        return cls(global_segments, num_prefix + windows.order, windows.segments)
