"""The base class of the teachers: frozen networks that resize and normalize on their own.

To add a teacher, write a subclass (about 30 lines), anywhere:

    class MyTeacher(Teacher):
        image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

        def __init__(self, name: str, *, source: str | None, layer: int = 11):
            super().__init__(name, summary_dim=384, feature_dim=384, patch_size=14, native_size_px=518)
            self.network = load_my_network(source, layer)
            self.freeze()

        def encode(self, pixel_values: Tensor) -> TeacherOutput:
            tokens = self.network(pixel_values)  # (batch, 1 + rows * cols, 384)
            return TeacherOutput(tokens[:, 0], tokens_to_map(tokens[:, 1:], pixel_values, 14))

A recipe names it by its import path, `kind: "my_package.my_module:MyTeacher"`; a class of this package gets a short
name in `TEACHER_KINDS` of `training/teachers/registry.py`. Every keyword of the constructor is an option of the
recipe; a misspelt one is refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import ClassVar, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from modeling_radio.resolution_radio import round_to_step
from training.recipe_sections.networks import RunMode, RunOptions
from training.teachers.depths import BlockListener
from training.teachers.featsharp import FeatSharp
from training.teachers.mosaic import MosaicLayout, pack_mosaics, slice_mosaics
from training.teachers.tile_upsampling import add_detail, cut_tiles, stitch_tiles, tiles_per_side


IMAGENET_MEAN, IMAGENET_STD = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
HALF_MEAN, HALF_STD = tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)
CLIP_MEAN, CLIP_STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)

DEFAULT_GRID_STRIDE = 16  # the patch size of every released student but one, https://arxiv.org/abs/2601.17237


class TeacherOutput(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None where the teacher has no summary.
        features: `(batch, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor


class Teacher(nn.Module):
    """Base class of the teachers: frozen, always in eval mode, never building a graph.

    An image is `rows` x `cols` cells to whoever asks, the patches of the student. What the teacher takes in of it
    (`input_sizes`) and on which grid it answers is its run mode:

    - "native": at the student's size. It sees the image resized to `rows * patch_size` by `cols * patch_size` pixels,
      rounded up to `size_multiple`.
    - "fixed": at one size, `input_size_px` squared, so on one grid; with `upsample="tiles"` a grid finer than its own
      is answered on a multiple of it, with the detail of its features of tiles of the image, and with
      `upsample="featsharp"` by a trained network out of the same two (`use_upsampler`).
    - "mosaic": at one size, many images in a pass, for a teacher without a summary (see `training.teachers.mosaic`); an
      image with more cells than it has along a side is shrunk to as many.

    Called with images at the sizes that it takes in, it answers on its own grid; `answer` does the rest for images of
    any size.

    Args:
        name: Name of the teacher: the adaptor's name in the config, the checkpoint and the logs.
        summary_dim: Width of the summary, None where there is none.
        feature_dim: Width of the features.
        patch_size: Pixels of the teacher's own input that make one feature cell.
        native_size_px: Side of the square that the network was trained at, pixels; None where it has no such size.
        runs_at_any_size: False where the network runs at its native size only.
        default_mode: How it runs unless told otherwise.

    Attributes:
        run: How it runs, with the mode and the size that were chosen for it.
        image_mean: Mean that the network was trained with, RGB of pixels in [0, 1].
        image_std: Standard deviation that it was trained with, in the same units.
        size_multiple: The network's input sides must be multiples of it; None means `patch_size`.
        is_convolutional: The network runs in channels-last layout, about twice as fast on CPUs.
    """

    image_mean: ClassVar[tuple[float, float, float]]
    image_std: ClassVar[tuple[float, float, float]]
    size_multiple: ClassVar[int | None] = None
    is_convolutional: ClassVar[bool] = False

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        summary_dim: int | None,
        feature_dim: int,
        patch_size: int,
        native_size_px: int | None = None,
        runs_at_any_size: bool = True,
        default_mode: RunMode = "native",
    ):
        super().__init__()
        self.name = name
        self.summary_dim = summary_dim
        self.feature_dim = feature_dim
        self.patch_size = patch_size
        self.native_size_px = native_size_px
        self.runs_at_any_size = runs_at_any_size
        self.default_mode: RunMode = default_mode
        self.upsampler: FeatSharp | None = None
        self.listener: BlockListener | None = None
        self.register_buffer("mean", torch.tensor(self.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.image_std).view(1, 3, 1, 1))
        self.set_run_mode()

    def set_run_mode(self, run: RunOptions | None = None, grid_stride: int = DEFAULT_GRID_STRIDE) -> None:
        """Set how the teacher runs.

        Args:
            run: How; None for its defaults.
            grid_stride: Pixels of the given image that make one cell of the answer: the student's patch size.

        Raises:
            ValueError: If the teacher cannot run so.
        """
        run = run or RunOptions()
        if grid_stride < 1:
            raise self._error(f"`grid_stride` must be positive, got {grid_stride}.")
        mode = run.run_mode or (self.default_mode if run.input_size_px is None else "fixed")
        if mode == "mosaic" and self.summary_dim is not None:
            raise self._error("`run_mode` must be 'native' or 'fixed' for a teacher with a summary, got 'mosaic'.")
        if run.upsample != "bilinear" and mode != "fixed":
            raise self._error(f"`run_mode` must be 'fixed' for `upsample` {run.upsample!r}, got {mode!r}.")
        self.run = run.replace(run_mode=mode, input_size_px=self._input_size(mode, run.input_size_px))
        self.grid_stride = grid_stride

    def use_upsampler(self, upsampler: FeatSharp) -> None:
        """Answer grids finer than the own by a trained network, which is frozen and moves with the teacher."""
        self.upsampler = upsampler
        self.train(False)

    def use_depths(self, depths: Sequence[float]) -> None:
        """Let calls return maps of blocks on the way too: as further channels of the features, `feature_dim` for each.

        `answer` leaves them out. Call it once, before the network is compiled.

        Args:
            depths: Shares of the network's blocks, above 0 and at most 1.

        Raises:
            ValueError: If its blocks are not to be had, or are of other widths than its features.
        """
        blocks = self.blocks()
        if not blocks or self.run.upsample == "featsharp":
            reason = "`upsample` is 'featsharp', which is for its last ones" if blocks else "its kind knows none"
            raise self._error(f"`taps.targets` must be 'last' for a teacher without features of blocks: {reason}.")
        self.listener = BlockListener(blocks, depths)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the network's blocks in their order, each as wide as the features; none where there are no such."""
        return ()

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError if images of this size, in pixels, are not a multiple of the grid."""
        if height % self.grid_stride or width % self.grid_stride:
            step = self.grid_stride
            raise self._error(
                f"`pixel_values` must have sides that are multiples of {step} px, got {height} x {width}."
            )

    def compile_network(self) -> None:
        """Compile `encode` with `torch.compile`; that happens at the first call, and again for other input sizes."""
        self.encode = torch.compile(self.encode)

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Run the network.

        Args:
            pixel_values: Normalized RGB, `(batch, 3, height, width)`, sides multiples of `size_multiple`.

        Returns:
            Summary and features on the network's own grid, any float type.
        """
        raise NotImplementedError

    def input_sizes(self, rows: int, cols: int) -> tuple[tuple[int, int], ...]:
        """Return the sizes, height and width in pixels, at which it takes in an image of `rows` x `cols` cells.

        More than one with `upsample` "tiles" or "featsharp": the whole image, and once more at the size that is cut
        into tiles.
        """
        if self.run.run_mode == "native":
            return (self._native_run_size(rows, cols),)
        side = self._fixed_side()
        if self.run.run_mode == "mosaic":
            return ((min(rows * self.patch_size, side), min(cols * self.patch_size, side)),)
        num_tiles = tiles_per_side(max(rows, cols), side // self.patch_size) if self.run.upsample != "bilinear" else 1
        return tuple((side * count, side * count) for count in dict.fromkeys((1, num_tiles)))

    @torch.no_grad()
    def forward(self, groups: Sequence[Sequence[Tensor]]) -> list[TeacherOutput]:
        """Return the teacher's summary and features on its own grid, float32, on the device of the images.

        Groups that it takes in at the same sizes share a pass, and in the mode "mosaic" all do.

        Args:
            groups: Images of one grid each: RGB in [0, 1] at each of `input_sizes(rows, cols)`,
                `(images, 3, height, width)`, on any device.
        """
        home = groups[0][0].device
        device = self.mean.device
        normalized = [
            [(images.to(device, non_blocking=True) - self.mean) / self.std for images in group] for group in groups
        ]
        answers = self._answer_mosaics(normalized) if self.run.run_mode == "mosaic" else self._answer_runs(normalized)
        return [
            TeacherOutput(None if summary is None else summary.to(home), features.to(home))
            for summary, features in answers
        ]

    def answer(self, pixel_values: Tensor) -> TeacherOutput:
        """Return summary and features of images, one cell for each `grid_stride`, float32, on the images' device.

        The images are resized to what the network takes in, and its features resampled to the grid.

        Args:
            pixel_values: RGB in [0, 1], `(batch, 3, height, width)`, sides multiples of `grid_stride`, on any device.

        Raises:
            ValueError: If the sides are not multiples of `grid_stride`.
        """
        height, width = pixel_values.shape[-2:]
        self.check_size(height, width)
        rows, cols = height // self.grid_stride, width // self.grid_stride
        images, home = pixel_values.to(self.mean.device, non_blocking=True), pixel_values.device
        ((summary, features),) = self([[resize_images(images, size) for size in self.input_sizes(rows, cols)]])
        features = resample_features(features[:, : self.feature_dim], rows, cols).contiguous()
        return TeacherOutput(None if summary is None else summary.to(home), features.to(home))

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode and frozen: a teacher has no training mode."""
        self.requires_grad_(False)
        return super().train(False)

    def freeze(self) -> Teacher:
        """Freeze the network after it was built."""
        if self.is_convolutional:
            self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
        return self.train(False)

    def _answer_runs(self, groups: list[list[Tensor]]) -> Iterator[TeacherOutput]:
        """Answer neighboring groups of equal sizes together."""
        for _, run in groupby(groups, key=lambda group: [images.shape[2:] for images in group]):
            together = list(run)
            whole, *larger = (torch.cat(sizes) for sizes in zip(*together, strict=True))
            summary, features = self._run_network(whole)
            for images in larger:
                features = self._with_detail(features, images)
            counts = [len(group[0]) for group in together]
            summaries = [None] * len(counts) if summary is None else summary.split(counts)
            yield from map(TeacherOutput, summaries, features.split(counts))

    def _with_detail(self, features: Tensor, images: Tensor) -> Tensor:
        """Return features on a finer grid, with the detail of those of tiles of the normalized images."""
        num_tiles = images.shape[2] // self._fixed_side()
        tiles = self._run_network(cut_tiles(images, num_tiles, num_tiles)).features
        stitched = stitch_tiles(tiles, num_tiles, num_tiles)
        if self.run.upsample == "tiles":
            return add_detail(features, stitched)
        if self.upsampler is None:
            raise self._error("`upsample` 'featsharp' needs `use_upsampler` first.")
        return self.upsampler(features, stitched, images)

    def _answer_mosaics(self, groups: list[list[Tensor]]) -> list[TeacherOutput]:
        """Answer the images of all groups on as few canvases as they fit on."""
        images = [image for (group,) in groups for image in group]
        cells = [(image.shape[1] // self.patch_size, image.shape[2] // self.patch_size) for image in images]
        layout = MosaicLayout(self._fixed_side() // self.patch_size, cells)
        features = iter(
            slice_mosaics(self._run_network(pack_mosaics(images, layout, self.patch_size)).features, layout)
        )
        return [TeacherOutput(None, torch.stack(list(islice(features, len(group))))) for (group,) in groups]

    def _run_network(self, normalized: Tensor) -> TeacherOutput:
        """Return summary and features on the network's own grid, float32.

        They are copies, because a loss cannot use tensors of inference mode.
        """
        if self.is_convolutional:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        autocast, device_type = contextlib.nullcontext(), normalized.device.type
        if torch.amp.is_autocast_available(device_type):  # not on the meta device, where runs are planned
            autocast = torch.autocast(device_type, torch.bfloat16, enabled=self.run.precision == "bfloat16")
        with torch.inference_mode(), autocast:
            summary, features = self._checked(self.encode(normalized))
            if self.listener is not None:
                grid = (side // self.patch_size for side in normalized.shape[2:])
                features = torch.cat([features.float(), *self.listener.take_maps(*grid)], dim=1)
        features = features.to(torch.float32, copy=True)
        return TeacherOutput(None if summary is None else summary.to(torch.float32, copy=True), features)

    def _checked(self, answer: TeacherOutput) -> TeacherOutput:
        """Refuse an answer of other widths than this teacher's: the student's heads and the statistics have these."""
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise self._error(f"`encode` must return a pair of summary and features, got {_describe(answer)}.")
        summary, features = answer
        if not (_is_floating(features) and features.ndim == 4 and features.shape[1] == self.feature_dim):
            rule = f"features of floats, (batch, {self.feature_dim}, rows, columns)"
            raise self._error(f"`encode` must return {rule}, got {_describe(features)}.")
        if self.summary_dim is None:
            is_summary, rule = summary is None, "None for the summary that it has not"
        else:
            is_summary = _is_floating(summary) and summary.shape[1:] == (self.summary_dim,)
            rule = f"a summary of floats, (batch, {self.summary_dim})"
        if not is_summary:
            raise self._error(f"`encode` must return {rule}, got {_describe(summary)}.")
        return TeacherOutput(summary, features)

    def _input_size(self, mode: RunMode, size: int | None) -> int | None:
        """Return the one size that the teacher runs at, None for the student's, or refuse it."""
        if mode == "native":
            if not self.runs_at_any_size:
                raise self._error(
                    f"`run_mode` must be 'fixed' or 'mosaic', got 'native': it runs at {self.native_size_px} px only."
                )
            if size is not None:
                raise self._error(f"`run_mode` must be 'fixed' with an `input_size_px` ({size}), got 'native'.")
            return None
        size = self.native_size_px if size is None else size
        if size is None:
            raise self._error(f"`run_mode` {mode!r} needs `input_size_px`, since it has no native size.")
        if not self.runs_at_any_size and size != self.native_size_px:
            raise self._error(f"`input_size_px` must be {self.native_size_px}, its only size, got {size}.")
        multiple = self.size_multiple or self.patch_size
        if size < 1 or size % multiple:
            nearest = round_to_step(size, multiple)
            raise self._error(f"`input_size_px` must be a multiple of {multiple}, got {size}. Use {nearest}.")
        return size

    def _native_run_size(self, rows: int, cols: int) -> tuple[int, int]:
        multiple = self.size_multiple or self.patch_size
        height, width = (math.ceil(cells * self.patch_size / multiple) * multiple for cells in (rows, cols))
        return height, width

    def _fixed_side(self) -> int:
        assert self.run.input_size_px is not None
        return self.run.input_size_px

    def _error(self, message: str) -> ValueError:
        return teacher_error(self.name, message)


def _is_floating(answer: object) -> TypeGuard[Tensor]:
    return isinstance(answer, Tensor) and answer.is_floating_point()


def _describe(answer: object) -> str:
    return f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__


def teacher_error(name: str, message: str) -> ValueError:
    """Return an error that names the teacher before its message."""
    return ValueError(f"Teacher {name!r}: {message}")


def resize_images(pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images resized to `size`, bicubic and antialiased, clipped to [0, 1]."""
    if tuple(pixel_values.shape[-2:]) == size:
        return pixel_values
    return F.interpolate(pixel_values, size, mode="bicubic", antialias=True).clamp(0, 1)


def resample_features(features: Tensor, rows: int, cols: int) -> Tensor:
    """Return features on a grid of `rows x cols`, resampled (bilinear, antialiased) from another grid."""
    if tuple(features.shape[-2:]) == (rows, cols):
        return features
    return F.interpolate(features, (rows, cols), mode="bilinear", antialias=True)


def tokens_to_map(tokens: Tensor, pixel_values: Tensor, patch_size: int) -> Tensor:
    """Return patch tokens `(batch, rows * cols, dim)` of these images as a map `(batch, dim, rows, cols)`."""
    rows, cols = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
    return tokens.transpose(1, 2).unflatten(2, (rows, cols))


class TeacherShape(Protocol):
    """The widths of a teacher, which decide those of the student's heads; None for a summary that it does not have."""

    summary_dim: int | None
    feature_dim: int
