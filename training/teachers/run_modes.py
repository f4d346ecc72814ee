"""Run modes of a teacher: at the student's size, at one size, and on mosaics of small images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from modeling_radio.checks_radio import round_to_step
from modeling_radio.data.decoding import ImageSize
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.outputs import TeacherOutput, teacher_error


RunNetwork = Callable[[Tensor], TeacherOutput]
"""From normalized images `(batch, 3, height, width)` to the output on the network's own grid, float32."""


class NetworkTraits(NamedTuple):
    """Facts of a network that decide how it can run.

    Attributes:
        name: The teacher's name, for errors.
        patch_size: Pixels of its input that make one feature patch.
        size_multiple: Sides of its input must be multiples of it.
        native_size_px: Side of the square that it was trained at; None if it has no such size.
        runs_at_any_size: False if it runs at its native size only.
        has_summary: Whether it has a summary.
    """

    name: str
    patch_size: int
    size_multiple: int
    native_size_px: int | None
    runs_at_any_size: bool
    has_summary: bool

    def error(self, message: str) -> ValueError:
        """Return an error that names the teacher before its message."""
        return teacher_error(self.name, message)


class RunMode(ABC):
    """One way to run a teacher.

    By default all groups of images with equal input sizes share a pass.

    Args:
        traits: The network's traits.
        options: The options of running, with a `run_mode`.

    Attributes:
        options: The options, with the chosen size.
        has_own_size: The whole image has one input size, whatever the student's is.

    Raises:
        ValueError: If the network cannot run in this mode.
    """

    has_own_size: ClassVar[bool] = False

    def __init__(self, traits: NetworkTraits, options: RunOptions) -> None:
        self.traits = traits
        self.options = options.replace(input_size_px=self.choose_size(options))

    @abstractmethod
    def choose_size(self, options: RunOptions) -> int | None:
        """Return the size in pixels of all inputs, or None for the student's size; refuse a wrong one."""

    @abstractmethod
    def input_sizes(self, rows: int, cols: int) -> tuple[ImageSize, ...]:
        """Return the input sizes of an image of `rows` x `cols` patches, the whole image's first."""

    def use_upsampler(self, upsampler: nn.Module) -> None:
        """Take a trained network that makes features finer."""
        raise self.traits.error(f"`upsample` must be 'featsharp' for an upsampler, got {self.options.upsample!r}.")

    def forward_groups(self, groups: Sequence[Sequence[Tensor]], run: RunNetwork) -> Iterable[TeacherOutput]:
        """Return summary and features of each group of images, on the teacher's own grid, float32.

        Args:
            groups: Images of one grid each, normalized, at each of `input_sizes`, `(images, 3, height, width)`.
            run: The network.
        """
        by_size: dict[tuple[torch.Size, ...], list[int]] = {}
        for position, group in enumerate(groups):
            by_size.setdefault(tuple(images.shape[2:] for images in group), []).append(position)
        found: dict[int, TeacherOutput] = {}
        for positions in by_size.values():
            together = zip(*(groups[position] for position in positions), strict=True)
            summary, features = self.forward_batch([torch.cat(sizes) for sizes in together], run)
            counts = [len(groups[position][0]) for position in positions]
            summaries = [None] * len(counts) if summary is None else summary.split(counts)
            found |= zip(positions, map(TeacherOutput, summaries, features.split(counts)), strict=True)
        return [found[position] for position in range(len(groups))]

    def forward_batch(self, images: Sequence[Tensor], run: RunNetwork) -> TeacherOutput:
        """Return the output for images of one size, given at each of their `input_sizes`."""
        (whole,) = images
        return run(whole)


class NativeMode(RunMode):
    """One patch of the network for each of the student's, sides rounded up to a size that the network takes."""

    def choose_size(self, options: RunOptions) -> None:
        """Refuse a size, and a network with a single one."""
        if not self.traits.runs_at_any_size:
            native = self.traits.native_size_px
            raise self.traits.error(
                f"`run_mode` must be 'fixed' or 'mosaic', got 'native': it runs at {native} px only."
            )
        if options.input_size_px is not None:
            size = options.input_size_px
            raise self.traits.error(f"`run_mode` must be 'fixed' with an `input_size_px` ({size}), got 'native'.")

    def input_sizes(self, rows: int, cols: int) -> tuple[ImageSize, ...]:
        """Return one size, that of the image in patches, rounded up."""
        patch, multiple = self.traits.patch_size, self.traits.size_multiple
        height, width = (math.ceil(side * patch / multiple) * multiple for side in (rows, cols))
        return ((height, width),)


class OneSizeMode(RunMode):
    """Base of the modes with square inputs of one size."""

    @property
    def side_px(self) -> int:
        """Side of the squares, pixels."""
        assert self.options.input_size_px is not None
        return self.options.input_size_px

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of the network's own grid."""
        return self.side_px // self.traits.patch_size

    def choose_size(self, options: RunOptions) -> int:
        """Return the given size, or the native one."""
        native, multiple = self.traits.native_size_px, self.traits.size_multiple
        size_px = native if options.input_size_px is None else options.input_size_px
        if size_px is None:
            mode = options.run_mode
            raise self.traits.error(f"`run_mode` {mode!r} needs `input_size_px`, since it has no native size.")
        if not self.traits.runs_at_any_size and size_px != native:
            raise self.traits.error(f"`input_size_px` must be {native}, its only size, got {size_px}.")
        if size_px < 1 or size_px % multiple:
            nearest = round_to_step(size_px, multiple)
            raise self.traits.error(f"`input_size_px` must be a multiple of {multiple}, got {size_px}. Use {nearest}.")
        return size_px


class FixedMode(OneSizeMode):
    """One square size for every image, and so one grid of features."""

    has_own_size: ClassVar[bool] = True

    def input_sizes(self, rows: int, cols: int) -> tuple[ImageSize, ...]:
        """Return the one size."""
        return ((self.side_px, self.side_px),)


class MosaicMode(OneSizeMode):
    """Many images in a pass, for a teacher without a summary.

    An image with more patches than the canvas along a side is shrunk to fit, in both directions alike.
    """

    def choose_size(self, options: RunOptions) -> int:
        """Return the side of a canvas; refuse a summary, which would describe many images."""
        if self.traits.has_summary:
            raise self.traits.error(
                "`run_mode` must be 'native' or 'fixed' for a teacher with a summary, got 'mosaic'."
            )
        return super().choose_size(options)

    def input_sizes(self, rows: int, cols: int) -> tuple[ImageSize, ...]:
        """Return one size, a patch of the network for each of the student's."""
        patch, scale = self.traits.patch_size, min(1.0, self.patches_per_side / max(rows, cols))
        return ((max(1, round(rows * scale)) * patch, max(1, round(cols * scale)) * patch),)

    def forward_groups(self, groups: Sequence[Sequence[Tensor]], run: RunNetwork) -> Iterable[TeacherOutput]:
        """Yield the outputs of all groups, from as few canvases as possible."""
        patch = self.traits.patch_size
        images = [image for (group,) in groups for image in group]
        layout = MosaicLayout(
            self.patches_per_side, [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
        )
        features = iter(slice_mosaics(run(pack_mosaics(images, layout, patch)).features, layout))
        for (group,) in groups:
            yield TeacherOutput(None, torch.stack(list(islice(features, len(group)))))


class MosaicPosition(NamedTuple):
    """Canvas, row and column of the upper left patch of an image."""

    canvas: int
    row: int
    col: int


class MosaicLayout:
    """Positions of images on square canvases: on shelves, the tallest first, each on the first shelf with room for it.

    Patches that are left over separate the images of a shelf, and the shelves of a canvas.

    Args:
        canvas_patches: Patches along a side of a canvas.
        images: Rows and columns of patches of each image.

    Attributes:
        positions: Position of each image.
        num_canvases: Number of canvases.

    Raises:
        ValueError: If an image does not fit.

    References:
        First-fit decreasing height: Coffman et al., "Performance bounds for level-oriented two-dimensional packing
        algorithms", SIAM J. Comput. 9 (1980).
    """

    def __init__(self, canvas_patches: int, images: Sequence[tuple[int, int]]) -> None:
        for rows, cols in images:
            if not 1 <= min(rows, cols) <= max(rows, cols) <= canvas_patches:
                raise ValueError(
                    f"`images` must have 1 to {canvas_patches} patches a side, as the canvas has, got {rows} x {cols}."
                )
        self.canvas_patches, self.images = canvas_patches, list(images)
        by_height = sorted(range(len(images)), key=lambda image: (-images[image][0], -images[image][1], image))
        shelves = _first_fit(by_height, [images[image][1] for image in by_height], canvas_patches)
        heights = [images[shelf[0]][0] for shelf in shelves]
        canvases = _first_fit(list(range(len(shelves))), heights, canvas_patches)
        self.num_canvases = len(canvases)
        positions: dict[int, MosaicPosition] = {}
        for canvas, members in enumerate(canvases):
            tops = _spread([heights[shelf] for shelf in members], canvas_patches)
            for top, shelf in zip(tops, members, strict=True):
                lefts = _spread([images[image][1] for image in shelves[shelf]], canvas_patches)
                for left, image in zip(lefts, shelves[shelf], strict=True):
                    positions[image] = MosaicPosition(canvas, top, left)
        self.positions = [positions[image] for image in range(len(images))]


def pack_mosaics(images: Sequence[Tensor], layout: MosaicLayout, patch_px: int) -> Tensor:
    """Lay images on canvases.

    Args:
        images: Each `(channels, rows * patch_px, cols * patch_px)`, normalized: spare area is 0, the mean color.
        layout: Their positions.
        patch_px: Pixels along a side of a patch.

    Returns:
        `(num_canvases, channels, canvas_patches * patch_px, canvas_patches * patch_px)`.
    """
    side = layout.canvas_patches * patch_px
    canvases = images[0].new_zeros(layout.num_canvases, len(images[0]), side, side)
    for image, (canvas, row, col) in zip(images, layout.positions, strict=True):
        top, left = row * patch_px, col * patch_px
        canvases[canvas, :, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvases


def slice_mosaics(features: Tensor, layout: MosaicLayout) -> list[Tensor]:
    """Cut the images' features, each `(channels, rows, cols)`, out of those of the canvases.

    Args:
        features: `(num_canvases, channels, canvas_patches, canvas_patches)`.
        layout: Positions of the images.
    """
    return [
        features[canvas, :, row : row + rows, col : col + cols]
        for (canvas, row, col), (rows, cols) in zip(layout.positions, layout.images, strict=True)
    ]


def _first_fit(items: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put each item into the first bin that still has room for its length, or into a new one."""
    bins: list[list[int]] = []
    left: list[int] = []
    for item, length in zip(items, lengths, strict=True):
        position = next((position for position, space in enumerate(left) if space >= length), len(bins))
        if position == len(bins):
            bins.append([])
            left.append(room)
        bins[position].append(item)
        left[position] -= length
    return bins


def _spread(lengths: Sequence[int], room: int) -> list[int]:
    """Return the starts of neighboring intervals in a room, with equal shares of its spare space behind them."""
    gap = (room - sum(lengths)) // len(lengths)
    return [sum(lengths[:position]) + position * gap for position in range(len(lengths))]
