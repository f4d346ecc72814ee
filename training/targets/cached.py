"""Examples from a feature cache: windows and flips of images whose teacher features were computed once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.training.losses.alignment import Alignment, Sides
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.targets.examples import Example, Target
from modeling_radio.training.targets.feature_cache import FeatureCache
from modeling_radio.training.views.crops import (
    change_colors,
    cut_windows,
    draw_colors,
    draw_flips,
    draw_other_position,
    draw_window_offsets,
    flip,
    flip_shift,
)
from modeling_radio.training.views.packed_tensors import PackedTensors
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid


class CachedTargets:
    """Windows and flips of whole images whose teacher features were computed once.

    The student's window moves over the image by whole patches, while the teachers' position patterns stay: the student
    cannot learn them, as with the shifts of the online mode. Summaries are those of the whole image.

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        cache: Images and teacher features.
        device: Device of the student.

    Raises:
        RecipeError: If a window is no whole number of patches or larger than the images.
    """

    def __init__(self, recipe: Recipe, patch_size: int, cache: FeatureCache, device: torch.device) -> None:
        self.recipe, self.patch_size, self.cache, self.device = recipe, patch_size, cache, device
        side_px = recipe.data.image_size_px
        for partition in recipe.partitions:
            for window in partition.windows_px or partition.sizes_px:
                if window % patch_size or window > side_px:
                    raise RecipeError(
                        f"`partitions.{partition.name}` must have windows that are multiples of the patch "
                        f"({patch_size}) and at most `data.image_size_px` ({side_px}) with cached features, got "
                        f"{window} px."
                    )
        self.patches_per_side = side_px // patch_size

    def examples(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[tuple[PlannedBatch, Example]]:
        for batch in plan():
            yield batch, self._example(batch)

    def student_images(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[list[Tensor]]:
        for batch in plan():
            offsets = draw_window_offsets(batch, "offset", self.patches_per_side)
            yield self._student_images(self.cache.images(batch.indices), batch, offsets)

    def state_dict(self) -> dict[str, Any]:
        return {}  # the images of a step depend on its number only

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        return

    def _example(self, batch: PlannedBatch) -> Example:
        offsets = draw_window_offsets(batch, "offset", self.patches_per_side)
        images, outputs = self.cache.images(batch.indices), self.cache.outputs(batch.indices)
        targets = {}
        for name, (summary, features) in outputs.items():
            if name in batch.teachers:
                windows = [maps.float() for maps in self._windows(features, batch, offsets)]
                on_device = None if summary is None else summary.to(self.device, non_blocking=True).float()
                targets[name] = Target(on_device, windows, self._alignments(name, windows, batch))
        pixel_values = self._student_images(images, batch, offsets)
        if not self.recipe.has_mesa(batch.step):
            return Example(pixel_values, targets)
        moved, shifts = self._other_windows(batch, offsets)
        average = self._student_images(images, batch, moved)
        alignments = [
            Alignment.of(shape.grid, [shape.grid], shape.grid, shift)
            for (shape, _), shift in zip(batch.groups, shifts, strict=True)
        ]
        return Example(pixel_values, targets, average, PackedTensors.of(alignments).to(self.device))

    def _alignments(self, name: str, windows: Sequence[Tensor], batch: PlannedBatch) -> list[Alignment]:
        """Return for each group the alignment of a teacher's windows with the student's maps of the same windows."""
        factors, alignments = self.recipe.dense_factors(name), []
        for (shape, _), maps in zip(batch.groups, windows, strict=True):
            heads = tuple((shape.grid.rows * factor, shape.grid.cols * factor) for factor in factors)
            sides, is_extended = (maps.shape[2], maps.shape[3]), self.recipe.loss.border == "extended"
            alignments.append(_align_windows(sides, heads, shape.grid, is_extended, self.device))
        return alignments

    def _other_windows(self, batch: PlannedBatch, offsets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return offsets of other windows for the moving average, and their shifts from the student's in tokens.

        They are moved by whole tokens, to the nearest pixel of the image. All windows within the image are equally
        likely, except for the student's own.
        """
        number, is_flipped = batch.uniform("average"), draw_flips(batch, self.recipe.views)
        moved, shifts = offsets.double(), []
        for shape, group in batch.groups:
            window, grid = torch.tensor(shape.window), torch.tensor(shape.grid)
            behind = self.patches_per_side - window - offsets[group]
            shift = draw_other_position(number[group], offsets[group] * grid // window, behind * grid // window)
            moved[group] += shift * window / grid
            shifts.append(flip_shift(shift, is_flipped[group]))
        return moved, shifts

    def _windows(self, maps: Tensor, batch: PlannedBatch, offsets: Tensor) -> list[Tensor]:
        """Cut each group's windows out of pixels or features, which may have several rows for each patch."""
        rows_per_patch = maps.shape[2] // self.patches_per_side
        is_flipped = draw_flips(batch, self.recipe.views)
        windows = []
        for shape, group in batch.groups:
            side = Grid(*(patches * rows_per_patch for patches in shape.window))
            cut = cut_windows(maps[group], (offsets[group] * rows_per_patch).round().long(), side)
            windows.append(flip(cut, is_flipped[group]).to(self.device, non_blocking=True))
        return windows

    def _student_images(self, images: Tensor, batch: PlannedBatch, offsets: Tensor) -> list[Tensor]:
        """Return windows of uint8 images as the student sees them: at its sizes, with changed colors, in [0, 1]."""
        contrast, brightness = draw_colors(batch, self.recipe.views)
        pixel_values = []
        for (shape, group), window in zip(batch.groups, self._windows(images, batch, offsets), strict=True):
            size, pixels = tuple(patches * self.patch_size for patches in shape.grid), window.float() / 255
            if pixels.shape[2:] != size:
                pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
            pixel_values.append(change_colors(pixels, contrast[group], brightness[group]))
        return pixel_values


@cache
def _align_windows(
    sides: Sides, heads: tuple[Sides, ...], patches: Sides, is_extended: bool, device: torch.device
) -> Alignment:
    """Return the alignment of maps of one window, the same for all images."""
    return PackedTensors.of(Alignment.of(sides, heads, patches, is_extended=is_extended)).to(device)
