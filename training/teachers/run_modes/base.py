"""The interface of the ways to run a teacher, and the plain ones: at the student's size, and at one size.

A new way is a subclass of `RunMode` in a file of this folder, a line in `RUN_MODES` of `registry.py` beside this file,
and its name in `RunModeName` or `Upsampling` of `training/recipe_sections/networks.py`, which recipes are checked by.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from modeling_radio.checks_radio import round_to_step
from training.recipe_sections.networks import RunOptions
from training.teachers.answers import TeacherOutput, teacher_error


Size = tuple[int, int]
"""Height and width in pixels."""

RunNetwork = Callable[[Tensor], TeacherOutput]
"""From normalized images `(batch, 3, height, width)` to the answer on the network's own grid, float32."""


class NetworkTraits(NamedTuple):
    """What a run mode must know of the network.

    Attributes:
        name: The teacher's name, for errors.
        patch_size: Pixels of its input that make one feature cell.
        size_multiple: Sides of its input must be multiples of it.
        native_size_px: Side of the square that it was trained at; None where it has no such size.
        runs_at_any_size: False where it runs at its native size only.
        has_summary: Whether it answers with a summary too.
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

    By default all groups of images that are taken in at equal sizes share a pass.

    Args:
        traits: Of the network.
        options: How it runs, `run_mode` chosen.

    Attributes:
        options: The same, with the size that was chosen for it.
        has_own_size: The whole image is seen at one size, whatever the student's is.
        answers_for_blocks: Features of blocks on the way can be had as well.

    Raises:
        ValueError: If the network cannot run so.
    """

    has_own_size: ClassVar[bool] = False
    answers_for_blocks: ClassVar[bool] = True

    def __init__(self, traits: NetworkTraits, options: RunOptions) -> None:
        self.traits = traits
        self.options = options.replace(input_size_px=self.choose_size(options))

    @abstractmethod
    def choose_size(self, options: RunOptions) -> int | None:
        """Return the one size that the network runs at, pixels, None for the student's, or refuse it."""

    @abstractmethod
    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return the sizes at which it takes in an image of `rows` x `cols` cells, the whole image's first."""

    def use_upsampler(self, upsampler: nn.Module) -> None:
        """Take a trained network that makes features finer."""
        raise self.traits.error(f"`upsample` must be 'featsharp' for an upsampler, got {self.options.upsample!r}.")

    def answer(self, groups: Sequence[Sequence[Tensor]], run: RunNetwork) -> Iterable[TeacherOutput]:
        """Return summary and features of each group of images, on the teacher's own grid, float32.

        Args:
            groups: Images of one grid each, normalized, at each of `input_sizes`, `(images, 3, height, width)`.
            run: The network.
        """
        by_size: dict[tuple[torch.Size, ...], list[int]] = {}
        for place, group in enumerate(groups):
            by_size.setdefault(tuple(images.shape[2:] for images in group), []).append(place)
        answers: dict[int, TeacherOutput] = {}
        for places in by_size.values():
            together = zip(*(groups[place] for place in places), strict=True)
            summary, features = self.answer_batch([torch.cat(sizes) for sizes in together], run)
            counts = [len(groups[place][0]) for place in places]
            summaries = [None] * len(counts) if summary is None else summary.split(counts)
            answers |= zip(places, map(TeacherOutput, summaries, features.split(counts)), strict=True)
        return [answers[place] for place in range(len(groups))]

    def answer_batch(self, images: Sequence[Tensor], run: RunNetwork) -> TeacherOutput:
        """Return the answer to images of one size, given at each of their `input_sizes`."""
        (whole,) = images
        return run(whole)


class NativeMode(RunMode):
    """It sees the image at one patch for each cell, its sides rounded up to what the network takes."""

    def choose_size(self, options: RunOptions) -> None:
        """Refuse a size, and a network that has one only."""
        if not self.traits.runs_at_any_size:
            native = self.traits.native_size_px
            raise self.traits.error(
                f"`run_mode` must be 'fixed' or 'mosaic', got 'native': it runs at {native} px only."
            )
        if options.input_size_px is not None:
            size = options.input_size_px
            raise self.traits.error(f"`run_mode` must be 'fixed' with an `input_size_px` ({size}), got 'native'.")

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return one size, near to that of the image in patches."""
        patch, multiple = self.traits.patch_size, self.traits.size_multiple
        height, width = (math.ceil(cells * patch / multiple) * multiple for cells in (rows, cols))
        return ((height, width),)


class OneSizeMode(RunMode):
    """Base of the modes in which the network sees squares of one size."""

    @property
    def side_px(self) -> int:
        """Side of these squares, pixels."""
        assert self.options.input_size_px is not None
        return self.options.input_size_px

    @property
    def cells_per_side(self) -> int:
        """Cells along a side of the network's own grid."""
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
    """It sees every image at one square size, and so answers on one grid, of whatever is asked for."""

    has_own_size: ClassVar[bool] = True

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return the one size."""
        return ((self.side_px, self.side_px),)
