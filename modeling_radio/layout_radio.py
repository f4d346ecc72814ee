"""Which tokens attend to each other: the whole image, ViTDet windows over any grid, or the images of a pack.

A pack is a batch of images of different sizes in one sequence, where images of one grid share an attention call.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .resolution_radio import Resolution


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


class ImagePack:
    """Order of a packed sequence: images sorted by grid, each as prefix tokens and patches.

    Args:
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        num_prefix: Prefix tokens of each image.

    Attributes:
        grids: Rows and columns of patches of each image, in the order of the call.
        groups: By grid, the positions of its images in the call.
    """

    def __init__(self, image_grid_hw: Tensor, num_prefix: int) -> None:
        self.num_prefix = num_prefix
        self.grids = [Resolution(int(rows), int(cols)) for rows, cols in image_grid_hw.tolist()]
        self.groups: dict[Resolution, list[int]] = {}
        for image, grid in enumerate(self.grids):
            self.groups.setdefault(grid, []).append(image)

    @property
    def largest_grid(self) -> Resolution:
        """Rows and columns of patches of the image with most of them."""
        return max(self.grids, key=lambda grid: grid.height * grid.width)

    @property
    def runs(self) -> Segments:
        """The sequence as runs of images of one grid."""
        return tuple((len(images), self.num_prefix + rows * cols) for (rows, cols), images in self.groups.items())

    def group_patches(self, patches: Tensor) -> list[Tensor]:
        """Gather `(total_patches, ...)` in the order of the call into `(images, rows * cols, ...)` per group."""
        by_image = patches.split([rows * cols for rows, cols in self.grids])
        return [torch.stack([by_image[image] for image in images]) for images in self.groups.values()]

    def group_sequence(self, sequence: Tensor) -> list[Tensor]:
        """Cut a packed sequence `(1, length, hidden)` into `(images, prefix + rows * cols, hidden)` per group."""
        parts = sequence[0].split([count * length for count, length in self.runs])
        return [part.unflatten(0, run) for part, run in zip(parts, self.runs, strict=True)]

    def ungroup(self, grouped: list[Tensor]) -> list[Tensor]:
        """Return one tensor per image, in the order of the call, from one tensor `(images, ...)` per group."""
        by_image: dict[int, Tensor] = {}
        for images, tensor in zip(self.groups.values(), grouped, strict=True):
            by_image.update(zip(images, tensor.unbind(0), strict=True))
        return [by_image[image] for image in range(len(self.grids))]

    def spread(self, by_image: Tensor) -> Tensor:
        """Return `(1, length, ...)`, for each token of the sequence its image's entry of `(images, 1, ...)`."""
        images = [image for images in self.groups.values() for image in images]
        counts = [length for count, length in self.runs for _ in range(count)]
        return by_image[images, 0].repeat_interleave(torch.tensor(counts, device=by_image.device), dim=0).unsqueeze(0)

    def concatenate(self, sequence: Tensor) -> Tensor:
        """Return a packed sequence as `(length, hidden)`, image after image in the order of the call."""
        return torch.cat(self.ungroup(self.group_sequence(sequence)))

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        """Return which tokens of the packed sequence attend to each other."""
        if window_size is None:
            return AttentionLayout(self.runs)
        orders, window_segments, offset = [], [], 0
        for grid, (count, length) in zip(self.groups, self.runs, strict=True):
            starts = offset + self.num_prefix + length * torch.arange(count, device=device)
            order, windows = partition_windows(*grid, window_size, device)
            sizes = [num_windows * size for num_windows, size in windows]
            for run, (num_windows, size) in zip(order.split(sizes), windows, strict=True):
                orders.append((starts[:, None] + run).flatten())
                window_segments.append((count * num_windows, size))
            offset += count * length
        return AttentionLayout(self.runs, torch.cat(orders), tuple(window_segments))
