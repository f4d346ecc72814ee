"""Packs: images of different sizes in one sequence, where images of one grid share an attention call."""

import torch
from torch import Tensor

from .layout_radio import AttentionLayout, Segments, partition_windows
from .resolution_radio import Resolution


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
