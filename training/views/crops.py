"""Crops of an image for student, moving average and each teacher, displaced by whole patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modeling_radio.data.decoding import DRAFT_GAP, ImageSize, to_tensor
from modeling_radio.data.settings import RGB
from modeling_radio.training.losses.alignment import Alignment, Sides
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError, ViewsRecipe
from modeling_radio.training.views.packed_tensors import PackedTensors
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid


STUDENT, AVERAGE = ":student", ":average"
"""Consumers of crops beside the teachers, whose names have no colon: the student and its moving average."""

SHIFT_DEVIATION_PATCHES = 0.5
"""Standard deviation of the shifts before they are rounded to whole patches, as in NVIDIA's TAO toolkit."""

RESAMPLE = Image.Resampling.BICUBIC
"""As `RadioImageProcessor` and most of the teachers' own processors. Antialiased."""


class _Region(NamedTuple):
    """A part of an image, in pixels from its upper left corner; it may reach beyond the image."""

    top: float
    left: float
    height: float
    width: float


class ComparedMaps(NamedTuple):
    """Sizes of a consumer's map, and of the student's maps that are compared with it.

    Attributes:
        own: Rows and columns of the consumer's map.
        student: Rows and columns of each map of the student.
        is_extended: Whether the consumer's map is extended to the edge of its crop.
    """

    own: Sides
    student: tuple[Sides, ...]
    is_extended: bool = False


class CropSpec(NamedTuple):
    """The crops that are wanted of one image.

    Attributes:
        numbers: Four uniform numbers that decide the region: scale, aspect ratio, row and column.
        scales: Bounds of the region's area, as shares of the largest of its shape that fits into the image.
        grid: The student's patches, which divide the region.
        is_flipped: Whether the image is mirrored.
        shifts: By consumer, the rows and columns of patches by which its crop is displaced from the region.
        sizes: By consumer, the sizes of its input, height and width in pixels.
        maps: By consumer, for those whose maps are compared with the student's.
    """

    numbers: tuple[float, float, float, float]
    scales: tuple[float, float]
    grid: Grid
    is_flipped: bool
    shifts: dict[str, tuple[int, int]]
    sizes: dict[str, tuple[ImageSize, ...]]
    maps: Mapping[str, ComparedMaps] = {}


class Crops(NamedTuple):
    """Crops of one image for each consumer.

    Attributes:
        grid: The student's patches.
        pixels: By consumer, uint8 `(3, height, width)` for each of its sizes; of images of other channels float32 in
            [0, 1], for teachers of those that they see.
        extent: `(2, 2)` integers, of rows and of columns: the patch of the region at which the image begins, and the
            one before which it ends.
    """

    grid: Grid
    pixels: dict[str, tuple[Tensor, ...]]
    extent: Tensor


class GroupCrops(NamedTuple):
    """Crops of several images of one grid.

    Attributes:
        pixels: By consumer that gets any of these images, `(images, channels, height, width)` for each of its sizes;
            see `Crops`.
        alignments: By consumer whose maps are compared with the student's.
    """

    pixels: dict[str, tuple[Tensor, ...]]
    alignments: dict[str, Alignment]


def align_crops(crops: Sequence[Crops], specs: Sequence[CropSpec]) -> dict[str, Alignment]:
    """Return by consumer the alignment of its maps with the student's, for its images of one grid."""
    maps = {name: compared for spec in specs for name, compared in spec.maps.items()}
    student_shifts = torch.tensor([spec.shifts[STUDENT] for spec in specs])
    extent = torch.stack([each.extent for each in crops]) - student_shifts[:, :, None]
    alignments = {}
    for name, (sides, student, is_extended) in maps.items():
        own = [place for place, spec in enumerate(specs) if name in spec.maps]
        shifts = torch.tensor([specs[place].shifts[name] for place in own]) - student_shifts[own]
        alignments[name] = Alignment.of(sides, student, specs[0].grid, shifts, extent[own], is_extended=is_extended)
    return alignments


class CropsBatch(NamedTuple):
    """Crops of a batch in two tensors, because each tensor that travels between processes is an open file.

    Attributes:
        pixels: Pixels of all images, consumers and sizes, one after the other.
        alignments: Alignments of neighbors of one grid, by consumer.
        groups: Number of neighbors of one grid, and the shapes of an image, by consumer that gets any of them.
    """

    pixels: Tensor
    alignments: PackedTensors
    groups: list[dict[str, tuple[int, tuple[torch.Size, ...]]]]

    @classmethod
    def of(cls, crops: Sequence[Crops], specs: Sequence[CropSpec]) -> CropsBatch:
        """Join the crops of images, in order, with what was wanted of each."""
        parts, groups, alignments, first = [], [], [], 0
        for _, neighbors in groupby(crops, key=lambda each: each.grid):
            group = list(neighbors)
            alignments.append(align_crops(group, specs[first : first + len(group)]))
            first += len(group)
            views: dict[str, list[tuple[Tensor, ...]]] = {}
            for each in group:
                for consumer, pixels in each.pixels.items():
                    views.setdefault(consumer, []).append(pixels)
            groups.append({name: (len(own), tuple(size.shape for size in own[0])) for name, own in views.items()})
            for own in views.values():
                for of_size in zip(*own, strict=True):
                    parts += [pixels.flatten() for pixels in of_size]
        return cls(torch.cat(parts), PackedTensors.of(alignments), groups)

    def split(self, device: torch.device) -> list[GroupCrops]:
        """Return the crops of each group, whose pixels share this memory, with their alignments on a device."""
        found, first = [], 0
        for consumers, alignments in zip(self.groups, self.alignments.to(device), strict=True):
            pixels = {}
            for consumer, (count, shapes) in consumers.items():
                own = []
                for shape in shapes:
                    stop = first + count * shape.numel()
                    own.append(self.pixels[first:stop].view(count, *shape))
                    first = stop
                pixels[consumer] = tuple(own)
            found.append(GroupCrops(pixels, alignments))
        return found


def cut_crops(image: Tensor, spec: CropSpec, views: ViewsRecipe, rgb: Sequence[int] = RGB) -> Crops:
    """Cut out each consumer's crop of an image, and resize it to the sizes of its input.

    Every crop shows an area as large as the region, whatever the sizes. Pixels beside the image are black.

    Args:
        image: `(3, height, width)` uint8; or float32 in [0, 1] of any channels.
        spec: The wanted crops.
        views: The recipe's section, with the bounds of aspect ratios.
        rgb: The channels of such an image that teachers see.
    """
    planes = _as_planes(image)
    region = choose_region((planes[0].height, planes[0].width), spec, views)
    resized: dict[tuple[_Region, ImageSize, bool], Tensor] = {}
    pixels = {}
    for consumer, (rows, cols) in spec.shifts.items():
        top, left = rows * region.height / spec.grid.rows, cols * region.width / spec.grid.cols
        crop = region._replace(top=region.top + top, left=region.left + left)
        is_rgb = image.is_floating_point() and consumer not in (STUDENT, AVERAGE)
        seen = [planes[channel] for channel in rgb] if is_rgb else planes
        for size in spec.sizes[consumer]:
            if (crop, size, is_rgb) not in resized:
                parts = [_resized(plane, crop, size, is_flipped=spec.is_flipped) for plane in seen]
                resized[crop, size, is_rgb] = torch.cat(parts)
        pixels[consumer] = tuple(resized[crop, size, is_rgb] for size in spec.sizes[consumer])
    return Crops(spec.grid, pixels, _extent(region, spec.grid, planes[0]))


def _as_planes(image: Tensor) -> list[Image.Image]:
    """Return an RGB image as one, or each channel of other images as an image of floats: Pillow resizes both."""
    if image.dtype == torch.uint8:
        return [Image.fromarray(np.ascontiguousarray(image.movedim(0, -1).numpy()))]
    return [Image.fromarray(channel) for channel in image.numpy()]


def choose_region(image_size: ImageSize, spec: CropSpec, views: ViewsRecipe) -> _Region:
    """Return the region that the numbers of a specification decide, in the mirrored image where it is flipped.

    Squares of the student show any aspect ratio within `views.crop_aspect`; otherwise the region has that of the
    student's grid. Its area is a share within `spec.scales` of the largest such region that fits into the image; a
    share above 1 reaches beyond it.
    """
    height, width = image_size
    scale, aspect, row, col = spec.numbers
    low, high = views.crop_aspect if views.is_square else 2 * (spec.grid.cols / spec.grid.rows,)
    ratio = low * (high / low) ** aspect
    share = spec.scales[0] + (spec.scales[1] - spec.scales[0]) * scale
    crop_height = min(height, width / ratio) * share**0.5
    crop_width = crop_height * ratio
    return _Region(row * (height - crop_height), col * (width - crop_width), crop_height, crop_width)


def least_scale(image_size: ImageSize, spec: CropSpec, views: ViewsRecipe) -> float:
    """Return the smallest factor of an image's sides at which every crop is `DRAFT_GAP` times what it is resized to."""
    region = choose_region(image_size, spec, views)
    sizes = [size for of_consumer in spec.sizes.values() for size in of_consumer]
    return DRAFT_GAP * max(max(height / region.height, width / region.width) for height, width in sizes)


def _extent(region: _Region, grid: Grid, pil_image: Image.Image) -> Tensor:
    """Return `Crops.extent`; patches that the image's edge cuts lie outside."""
    rounding = 1e-9  # of a patch, which then counts as whole
    sides = (
        (region.top, pil_image.height, region.height / grid.rows),
        (region.left, pil_image.width, region.width / grid.cols),
    )
    return torch.tensor(
        [
            [math.ceil(-start / patch - rounding), math.floor((length - start) / patch + rounding)]
            for start, length, patch in sides
        ]
    )


def _resized(pil_image: Image.Image, crop: _Region, size: ImageSize, *, is_flipped: bool) -> Tensor:
    """Return a crop as uint8 `(3, *size)`, or float32 `(1, *size)`; a flipped one is given in the mirrored image.

    Pixels beside the image are black, as in NVIDIA's TAO toolkit.
    """
    left, top = pil_image.width - crop.left - crop.width if is_flipped else crop.left, crop.top
    beside = max(-left, -top, left + crop.width - pil_image.width, top + crop.height - pil_image.height)
    pad = math.ceil(beside - 1e-6)  # less than that is rounding
    if pad > 0:
        pil_image = pil_image.crop((-pad, -pad, pil_image.width + pad, pil_image.height + pad))
        left, top = left + pad, top + pad
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + crop.width, pil_image.width),
        min(top + crop.height, pil_image.height),
    )
    small = pil_image.resize((size[1], size[0]), RESAMPLE, box=box)
    pixels = torch.from_numpy(np.array(small))[None].clamp(0, 1) if small.mode == "F" else to_tensor(small)
    return pixels.flip(-1) if is_flipped else pixels


def plan_crops(
    batch: PlannedBatch,
    recipe: Recipe,
    sizes: Mapping[str, Callable[[Grid], tuple[ImageSize, ...]]],
    maps: Mapping[str, Callable[[Grid], ComparedMaps]] = {},
) -> list[CropSpec]:
    """Return the crops of each image of a batch: one region for all consumers, which are displaced from it.

    Args:
        batch: The planned images.
        recipe: Bounds of regions, shifts and flips.
        sizes: By consumer (the student, its average, the first teacher of each network), a function from the student's
            grid to the sizes of the consumer's input in pixels.
        maps: By consumer, a function from the student's grid to the maps that are compared.
    """
    scales = next(
        each.crop_scale or recipe.views.crop_scale for each in recipe.partitions if each.name == batch.partition
    )
    shifts = {name: crop_shifts(batch, name, recipe.views).tolist() for name in sizes}
    grids = [shape.grid for shape, _ in batch.groups]
    sizes_of = {grid: {name: of_grid(grid) for name, of_grid in sizes.items()} for grid in grids}
    maps_of = {grid: {name: of_grid(grid) for name, of_grid in maps.items()} for grid in grids}
    regions, flips = batch.uniform("region", 4).tolist(), draw_flips(batch, recipe.views).tolist()
    return [
        CropSpec(
            tuple(region),
            scales,
            shape.grid,
            is_flipped,
            {name: tuple(shifts[name][row]) for name in sizes if batch.is_seen(row, name)},
            {name: of_grid for name, of_grid in sizes_of[shape.grid].items() if batch.is_seen(row, name)},
            {name: of_grid for name, of_grid in maps_of[shape.grid].items() if batch.is_seen(row, name)},
        )
        for row, (region, shape, is_flipped) in enumerate(zip(regions, batch.shapes, flips, strict=True))
    ]


def crop_shifts(batch: PlannedBatch, consumer: str, views: ViewsRecipe) -> Tensor:
    """Return by how many patches each of a consumer's crops is displaced from the region, `(batch, 2)`."""
    if consumer == AVERAGE:
        return draw_other_shifts(batch, consumer, views, draw_shifts(batch, STUDENT, views))
    return draw_shifts(batch, consumer, views)


def draw_shifts(batch: PlannedBatch, label: str, views: ViewsRecipe) -> Tensor:
    """Return `(batch, 2)` whole-patch shifts (rows, columns) of a crop from the region, in [-max, max].

    Rounded normal numbers, as in NVIDIA's TAO toolkit; each label (the student, each teacher) draws its own.
    """
    shifts = (batch.normal(f"shift:{label}", 2) * SHIFT_DEVIATION_PATCHES).round()
    return shifts.clamp(-views.max_shift_patches, views.max_shift_patches).long()


def draw_other_shifts(batch: PlannedBatch, label: str, views: ViewsRecipe, taken: Tensor) -> Tensor:
    """Return shifts as `draw_shifts` does, all different from the image's `taken` one, `(batch, 2)`.

    An equal one moves by a patch up, down, left or right, which may be one beyond max.
    """
    shifts = draw_shifts(batch, label, views)
    steps = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])[(4 * batch.uniform(f"other:{label}")).long()]
    return torch.where((shifts == taken).all(1, keepdim=True), taken + steps, shifts)


def draw_other_position(number: Tensor, before: Tensor, behind: Tensor) -> Tensor:
    """Return `(batch, 2)` shifts other than zero, all equally likely; zero where there is no other.

    Args:
        number: `(batch,)` uniform.
        before: `(batch, 2)` integers, the farthest shift up and to the left.
        behind: `(batch, 2)` integers, the farthest down and to the right.
    """
    counts = before + behind + 1
    num_others = counts.prod(1) - 1
    index = (number * num_others).long()
    own = before[:, 0] * counts[:, 1] + before[:, 1]
    index += ((index >= own) & (num_others > 0)).long()
    return torch.stack([index // counts[:, 1], index % counts[:, 1]], dim=1) - before


def draw_window_offsets(batch: PlannedBatch, label: str, num_patches: int) -> Tensor:
    """Return `(batch, 2)` offsets of each image's window in a square of patches, all equally likely."""
    windows = torch.tensor([shape.window for shape in batch.shapes])
    return (batch.uniform(label, 2) * (num_patches - windows + 1)).long()


def check_other_windows(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
    """Refuse MESA with windows of cached images that leave no other window to the student's average.

    Args:
        recipe: The recipe.
        partition: One of its partitions.
        patch_size: The student's patch in pixels.

    Raises:
        RecipeError: If the images are too small.
    """
    if recipe.mesa.weight == 0 or recipe.views.teachers != "cached":
        return
    side_px = recipe.data.image_size_px
    for size in partition.sizes_px:
        for window in partition.windows_px or [size]:
            # A window in the middle must be able to move by a token, which is `window / size` patches.
            least = window + patch_size * (2 * math.ceil(window / size) - 1)
            if side_px < least:
                raise RecipeError(
                    f"`data.image_size_px` must be at least {least} with `mesa.weight` above 0 and windows of {window} "
                    f"px for {size} px (`partitions.{partition.name}`), got {side_px}. The student's moving average "
                    "would see the student's own window. Or take smaller windows."
                )


def cut_windows(maps: Tensor, offsets: Tensor, window: Grid) -> Tensor:
    """Cut one window out of each map.

    Args:
        maps: `(batch, channels, rows, cols)`: pixels or features.
        offsets: `(batch, 2)` first row and column of each window.
        window: Its rows and columns.

    Returns:
        `(batch, channels, *window)`.
    """
    if maps.shape[-2:] == window:
        return maps
    pairs = zip(maps.unbind(0), offsets.tolist(), strict=True)
    return torch.stack([each[:, row : row + window.rows, col : col + window.cols] for each, (row, col) in pairs])


def draw_flips(batch: PlannedBatch, views: ViewsRecipe) -> Tensor:
    """Return `(batch,)` bool: which images are mirrored."""
    return batch.uniform("flip") < views.flip_probability


def flip(maps: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror those maps, `(batch, channels, rows, cols)`, for which `is_flipped`, `(batch,)` bool, is set."""
    return torch.where(is_flipped.to(maps.device)[:, None, None, None], maps.flip(-1), maps)


def flip_shift(shift: Tensor, is_flipped: Tensor) -> Tensor:
    """Return `(batch, 2)` shifts in the mirrored images: columns run the other way."""
    return torch.where(is_flipped[:, None], shift * torch.tensor([1, -1]), shift)


def draw_colors(batch: PlannedBatch, views: ViewsRecipe, num_channels: int = 3) -> tuple[Tensor, Tensor]:
    """Return the changes of the student's images: factors of channels `(batch, channels, 1, 1)`, a common summand."""
    contrast = 1 + views.contrast * (2 * batch.uniform("contrast", num_channels, 1, 1) - 1)
    return contrast, views.brightness * (2 * batch.uniform("brightness", 1, 1, 1) - 1)


def change_colors(pixel_values: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Change contrast and brightness of the student's images; the teachers' stay unchanged.

    Args:
        pixel_values: `(batch, channels, height, width)` in [0, 1].
        contrast: Factors `(batch, channels, 1, 1)`.
        brightness: Summands `(batch, 1, 1, 1)`.

    Returns:
        Same shape and range.
    """
    device = pixel_values.device
    return (pixel_values * contrast.to(device)).add_(brightness.to(device)).clamp_(0, 1)
