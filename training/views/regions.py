"""What each viewer sees of an image: its own crop of one region, displaced by whole student patches, resized once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.decoding import DRAFT_GAP, Size, to_tensor
from training.recipe import ViewsRecipe
from training.views.shapes import Grid


STUDENT, AVERAGE = ":student", ":average"
"""Viewers beside the teachers, whose names have no colon: the student and its moving average."""

RESAMPLE = Image.Resampling.BICUBIC
"""As `RadioImageProcessor` and most of the teachers' own processors. Antialiased."""


class Region(NamedTuple):
    """A part of an image, in pixels from its upper left corner; whole or not."""

    top: float
    left: float
    height: float
    width: float


class Sight(NamedTuple):
    """What is to be seen of one image.

    Attributes:
        numbers: Four uniform numbers that decide the region: scale, aspect ratio, row and column.
        scales: Bounds of the region's area, as shares of the largest of its shape that fits into the image.
        grid: The student's patches, which cut the region into cells.
        is_flipped: Whether the image is mirrored.
        shifts: By viewer, the rows and columns of cells by which its crop is to lie beside the region.
        sizes: By viewer, the sizes that it takes its crop in at.
    """

    numbers: tuple[float, float, float, float]
    scales: tuple[float, float]
    grid: Grid
    is_flipped: bool
    shifts: dict[str, tuple[int, int]]
    sizes: dict[str, tuple[Size, ...]]


class Seen(NamedTuple):
    """What was seen of an image, or of several of one grid, which then have a dimension of their own in front.

    Attributes:
        grid: The student's patches.
        pixels: By viewer, uint8 `(3, height, width)` for each of its sizes.
        extent: `(2, 2)` integers, of rows and of columns: at which of the region's cells the image begins, and at which
            it has ended.
    """

    grid: Grid
    pixels: dict[str, tuple[Tensor, ...]]
    extent: Tensor


def look(image: Tensor, sight: Sight, views: ViewsRecipe) -> Seen:
    """Cut out what each viewer sees of an image, and resize it to the sizes that it takes in.

    Every crop shows an area as large as the region, whatever the sizes. What lies beside the image is black.

    Args:
        image: `(3, height, width)` uint8.
        sight: What is wanted.
        views: The recipe's section, with the bounds of aspect ratios.
    """
    picture = Image.fromarray(np.ascontiguousarray(image.movedim(0, -1).numpy()))
    region = choose_region((picture.height, picture.width), sight, views)
    seen: dict[tuple[Region, Size], Tensor] = {}
    pixels = {}
    for viewer, shift in sight.shifts.items():
        crop = _displaced(region, sight.grid, shift)
        for size in sight.sizes[viewer]:
            if (crop, size) not in seen:
                seen[crop, size] = _resized(picture, crop, size, is_flipped=sight.is_flipped)
        pixels[viewer] = tuple(seen[crop, size] for size in sight.sizes[viewer])
    return Seen(sight.grid, pixels, _extent(region, sight.grid, picture))


def least_scale(image_size: Size, sight: Sight, views: ViewsRecipe) -> float:
    """Return the smallest factor of an image's sides at which every crop is `DRAFT_GAP` times what it is resized to."""
    region, least = choose_region(image_size, sight, views), 0.0
    for sizes in sight.sizes.values():
        least = max(least, *(max(size[0] / region.height, size[1] / region.width) for size in sizes))
    return DRAFT_GAP * least


def choose_region(image_size: Size, sight: Sight, views: ViewsRecipe) -> Region:
    """Return the region that a sight's numbers stand for, in the mirrored image where it is flipped.

    Squares of the student show any aspect ratio within `views.crop_aspect`; otherwise the region has that of the
    student's grid. Its area is a share within `sight.scales` of the largest such region that fits into the image; one
    above 1 reaches beyond it.
    """
    height, width = image_size
    scale, aspect, row, col = sight.numbers
    low, high = views.crop_aspect if views.is_square else 2 * (sight.grid.cols / sight.grid.rows,)
    ratio = low * (high / low) ** aspect
    share = sight.scales[0] + (sight.scales[1] - sight.scales[0]) * scale
    crop_height = min(height, width / ratio) * share**0.5
    crop_width = crop_height * ratio
    return Region(row * (height - crop_height), col * (width - crop_width), crop_height, crop_width)


class SeenBatch(NamedTuple):
    """What was seen of a batch, in two tensors: between processes each tensor is an open file.

    Attributes:
        pixels: Of all images, viewers and sizes, one after the other.
        extents: `(images, 2, 2)`.
        viewers: Their names.
        groups: Neighbors of one grid: it, how many they are, and by viewer the sizes.
    """

    pixels: Tensor
    extents: Tensor
    viewers: tuple[str, ...]
    groups: list[tuple[Grid, int, dict[str, tuple[Size, ...]]]]

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> SeenBatch:
        """Lay out what was seen of each image, in order; all have the same viewers."""
        viewers = tuple(seen[0].pixels)
        parts, groups = [], []
        for grid, neighbors in groupby(seen, key=lambda each: each.grid):
            group = list(neighbors)
            sizes = {viewer: tuple(tuple(each.shape[1:]) for each in group[0].pixels[viewer]) for viewer in viewers}
            groups.append((grid, len(group), sizes))
            for viewer in viewers:
                for place in range(len(sizes[viewer])):
                    parts += [each.pixels[viewer][place].flatten() for each in group]
        return cls(torch.cat(parts), torch.stack([each.extent for each in seen]), viewers, groups)

    def split(self) -> list[Seen]:
        """Return what was seen of each group, which shares this memory."""
        found, first, image = [], 0, 0
        for grid, count, sizes in self.groups:
            pixels = {}
            for viewer in self.viewers:
                own = []
                for height, width in sizes[viewer]:
                    stop = first + count * 3 * height * width
                    own.append(self.pixels[first:stop].view(count, 3, height, width))
                    first = stop
                pixels[viewer] = tuple(own)
            found.append(Seen(grid, pixels, self.extents[image : image + count]))
            image += count
        return found


def _extent(region: Region, grid: Grid, picture: Image.Image) -> Tensor:
    """Return `Seen.extent`: cells that are cut by the image's edge are not of it."""
    rounding = 1e-9  # of a cell, which then counts as whole
    sides = (
        (region.top, picture.height, region.height / grid.rows),
        (region.left, picture.width, region.width / grid.cols),
    )
    return torch.tensor(
        [
            [math.ceil(-start / cell - rounding), math.floor((length - start) / cell + rounding)]
            for start, length, cell in sides
        ]
    )


def _displaced(region: Region, grid: Grid, shift: tuple[int, int]) -> Region:
    top, left = region.top + shift[0] * region.height / grid.rows, region.left + shift[1] * region.width / grid.cols
    return Region(top, left, region.height, region.width)


def _resized(picture: Image.Image, crop: Region, size: Size, *, is_flipped: bool) -> Tensor:
    """Return a crop of an image, which is given in the mirrored image where it is flipped.

    Beside the image it is black, as in NVIDIA's TAO toolkit.
    """
    left, top = picture.width - crop.left - crop.width if is_flipped else crop.left, crop.top
    beside = max(-left, -top, left + crop.width - picture.width, top + crop.height - picture.height)
    pad = math.ceil(beside - 1e-6)  # less than that is rounding
    if pad > 0:
        picture = picture.crop((-pad, -pad, picture.width + pad, picture.height + pad))
        left, top = left + pad, top + pad
    box = (max(left, 0.0), max(top, 0.0), min(left + crop.width, picture.width), min(top + crop.height, picture.height))
    pixels = to_tensor(picture.resize((size[1], size[0]), RESAMPLE, box=box))
    return pixels.flip(-1) if is_flipped else pixels
