"""What each viewer sees of an image: its own crop of one region, displaced by whole student patches, resized once."""

from __future__ import annotations

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
        grid: The student's patches, which cut the region into cells.
        is_flipped: Whether the image is mirrored.
        shifts: By viewer, the rows and columns of cells by which its crop is to lie beside the region.
        sizes: By viewer, the sizes that it takes its crop in at.
    """

    numbers: tuple[float, float, float, float]
    grid: Grid
    is_flipped: bool
    shifts: dict[str, tuple[int, int]]
    sizes: dict[str, tuple[Size, ...]]


class Seen(NamedTuple):
    """What was seen of an image, or of several of one grid, which then have a dimension of their own in front.

    Attributes:
        grid: The student's patches.
        pixels: By viewer, uint8 `(3, height, width)` for each of its sizes.
        places: By viewer, where its crop lies: `(2,)` integers, the shift as it was possible within the image.
    """

    grid: Grid
    pixels: dict[str, tuple[Tensor, ...]]
    places: dict[str, Tensor]


def look(image: Tensor, sight: Sight, views: ViewsRecipe) -> Seen:
    """Cut out what each viewer sees of an image, and resize it to the sizes that it takes in.

    Every crop shows as much of the image as the region does, whatever the sizes. A shift that would leave the image
    goes the other way if there is more room, and is shortened to the whole cells that there is room for.

    Args:
        image: `(3, height, width)` uint8.
        sight: What is wanted.
        views: The recipe's section, with the bounds of scale and aspect ratio.
    """
    picture = Image.fromarray(np.ascontiguousarray(image.movedim(0, -1).numpy()))
    image_size = (picture.height, picture.width)
    region = choose_region(image_size, sight, views)
    seen: dict[tuple[Region, Size], Tensor] = {}
    pixels, places = {}, {}
    for viewer in sight.shifts:
        shift = _possible_shift(region, sight.grid, sight.shifts[viewer], image_size)
        crop = _displaced(region, sight.grid, shift)
        for size in sight.sizes[viewer]:
            if (crop, size) not in seen:
                seen[crop, size] = _resized(picture, crop, size, is_flipped=sight.is_flipped)
        pixels[viewer] = tuple(seen[crop, size] for size in sight.sizes[viewer])
        places[viewer] = torch.tensor(shift)
    return Seen(sight.grid, pixels, places)


def least_scale(image_size: Size, sight: Sight, views: ViewsRecipe) -> float:
    """Return the smallest factor of an image's sides at which every crop is `DRAFT_GAP` times what it is resized to."""
    region, least = choose_region(image_size, sight, views), 0.0
    for sizes in sight.sizes.values():
        least = max(least, *(max(size[0] / region.height, size[1] / region.width) for size in sizes))
    return DRAFT_GAP * least


def choose_region(image_size: Size, sight: Sight, views: ViewsRecipe) -> Region:
    """Return the region that a sight's numbers stand for, in the mirrored image where it is flipped.

    It is a share of the image's area within `views.crop_scale`, or less where the image is too narrow for it. Squares
    of the student show any aspect ratio within `views.crop_aspect`; otherwise the region has that of the student's
    grid.
    """
    height, width = image_size
    scale, aspect, row, col = sight.numbers
    area = height * width * (views.crop_scale[0] + (views.crop_scale[1] - views.crop_scale[0]) * scale)
    low, high = views.crop_aspect if views.is_square else 2 * (sight.grid.cols / sight.grid.rows,)
    ratio = low * (high / low) ** aspect
    crop_height = min((area / ratio) ** 0.5, height, width / low)
    crop_width = min((area * ratio) ** 0.5, width, crop_height * high)
    return Region(row * (height - crop_height), col * (width - crop_width), crop_height, crop_width)


class SeenBatch(NamedTuple):
    """What was seen of a batch, in two tensors: between processes each tensor is an open file.

    Attributes:
        pixels: Of all images, viewers and sizes, one after the other.
        places: `(images, viewers, 2)`.
        viewers: Their names.
        groups: Neighbors of one grid: it, how many they are, and by viewer the sizes.
    """

    pixels: Tensor
    places: Tensor
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
        places = torch.stack([torch.stack([each.places[viewer] for viewer in viewers]) for each in seen])
        return cls(torch.cat(parts), places, viewers, groups)

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
            places = self.places[image : image + count]
            found.append(Seen(grid, pixels, {viewer: places[:, own] for own, viewer in enumerate(self.viewers)}))
            image += count
        return found


def _possible_shift(region: Region, grid: Grid, wanted: tuple[int, int], image_size: Size) -> tuple[int, int]:
    """Return the whole cells of a shift, rows and columns, that there is room for in the image."""
    height, width = image_size
    rows = _within(wanted[0], region.top, height - region.top - region.height, region.height / grid.rows)
    cols = _within(wanted[1], region.left, width - region.left - region.width, region.width / grid.cols)
    return rows, cols


def _within(wanted: int, room_before: float, room_after: float, cell: float) -> int:
    """Return what there is room for of a shift; where there is less than on the other side, of its opposite."""
    tolerance = 1e-9  # of a cell: what rounding may take from room for a whole one
    before, after = (int(room / cell + tolerance) for room in (room_before, room_after))
    return max((min(max(shift, -before), after) for shift in (wanted, -wanted)), key=abs)


def _displaced(region: Region, grid: Grid, shift: tuple[int, int]) -> Region:
    top, left = region.top + shift[0] * region.height / grid.rows, region.left + shift[1] * region.width / grid.cols
    return Region(top, left, region.height, region.width)


def _resized(picture: Image.Image, crop: Region, size: Size, *, is_flipped: bool) -> Tensor:
    """Return a crop of an image, which is given in the mirrored image where it is flipped."""
    left = picture.width - crop.left - crop.width if is_flipped else crop.left
    box = (max(left, 0.0), max(crop.top, 0.0), left + crop.width, crop.top + crop.height)
    box = (*box[:2], min(box[2], picture.width), min(box[3], picture.height))
    pixels = to_tensor(picture.resize((size[1], size[0]), RESAMPLE, box=box))
    return pixels.flip(-1) if is_flipped else pixels
