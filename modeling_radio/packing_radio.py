"""Batches of images of different sizes, packed into one sequence: images of one grid share an attention call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .windows_radio import AttentionLayout, partition_windows


@dataclass(frozen=True)
class ImageGroup:
    """Images of one grid.

    Attributes:
        rows: Rows of patches.
        cols: Columns of patches.
        images: Positions of these images in the call.
    """

    rows: int
    cols: int
    images: tuple[int, ...]


class ImagePack:
    """Order of a packed sequence: images sorted by grid, each as prefix tokens and patches.

    Args:
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        num_prefix: Prefix tokens of each image.
    """

    def __init__(self, image_grid_hw: Tensor, num_prefix: int) -> None:
        self.grids = [(int(rows), int(cols)) for rows, cols in image_grid_hw.tolist()]
        self.num_prefix = num_prefix
        members: dict[tuple[int, int], list[int]] = {}
        for image, grid in enumerate(self.grids):
            members.setdefault(grid, []).append(image)
        self.groups = [ImageGroup(*grid, tuple(images)) for grid, images in members.items()]

    def group_patches(self, patches: Tensor) -> list[Tensor]:
        """Gather `(total_patches, ...)` in the order of the call into `(images, rows * cols, ...)` per group."""
        by_image = patches.split([rows * cols for rows, cols in self.grids])
        return [torch.stack([by_image[image] for image in group.images]) for group in self.groups]

    def group_sequence(self, sequence: Tensor) -> list[Tensor]:
        """Cut a packed sequence `(1, length, hidden)` into `(images, prefix + rows * cols, hidden)` per group."""
        lengths = [self.num_prefix + group.rows * group.cols for group in self.groups]
        runs = sequence[0].split(
            [len(group.images) * length for group, length in zip(self.groups, lengths, strict=True)]
        )
        return [run.unflatten(0, (-1, length)) for run, length in zip(runs, lengths, strict=True)]

    def ungroup(self, grouped: list[Tensor]) -> list[Tensor]:
        """Return one tensor per image, in the order of the call, from one tensor `(images, ...)` per group."""
        by_image: list[Tensor] = [grouped[0]] * len(self.grids)
        for group, tensor in zip(self.groups, grouped, strict=True):
            for image, value in zip(group.images, tensor.unbind(0), strict=True):
                by_image[image] = value
        return by_image

    def concatenate(self, sequence: Tensor) -> Tensor:
        """Return a packed sequence as `(length, hidden)`, image after image in the order of the call."""
        return torch.cat(self.ungroup(self.group_sequence(sequence)))

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        """Return which tokens of the packed sequence attend to each other."""
        global_segments = tuple((len(group.images), self.num_prefix + group.rows * group.cols) for group in self.groups)
        if window_size is None:
            return AttentionLayout(global_segments)
        orders, window_segments, offset = [], [], 0
        for group, (count, length) in zip(self.groups, global_segments, strict=True):
            starts = offset + self.num_prefix + length * torch.arange(count, device=device)
            windows = partition_windows(group.rows, group.cols, window_size, device)
            sizes = [num_windows * size for num_windows, size in windows.segments]
            for run, (num_windows, size) in zip(windows.order.split(sizes), windows.segments, strict=True):
                orders.append((starts[:, None] + run).flatten())
                window_segments.append((count * num_windows, size))
            offset += count * length
        return AttentionLayout(global_segments, torch.cat(orders), tuple(window_segments))
