"""From planned batches to student images with each teacher's answer: teachers run now, or their cached features."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from training.batches import Batch
from training.feature_cache import FeatureCache
from training.recipe import Recipe, RecipeError
from training.view_loaders import PartitionStreams, build_view_loader
from training.views import (
    cut_windows,
    draw_flips,
    draw_shifts,
    draw_window_offsets,
    exact_shift,
    flip,
    flip_shift,
    jitter_colour,
)


class Target(NamedTuple):
    """One teacher's answer for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: `(batch, feature_dim, rows, cols)`, not standardised.
        shift: `(batch, 2)` rows and columns in student patches: the teacher's crop minus the student's; None
            if both show the same.
    """

    summary: Tensor | None
    features: Tensor
    shift: Tensor | None


class AverageView(NamedTuple):
    """What the student's moving average sees of a batch, to be compared with the student.

    Attributes:
        pixel_values: `(batch, 3, size, size)`, coloured as the student's images.
        shift: `(batch, 2)` rows and columns in student patches: this crop minus the student's.
    """

    pixel_values: Tensor
    shift: Tensor


class Example(NamedTuple):
    """What a student learns from in one forward pass.

    Attributes:
        pixel_values: `(batch, 3, size, size)`, RGB in [0, 1].
        targets: By teacher name.
        average: Another crop for the moving average, in steps with a MESA loss.
    """

    pixel_values: Tensor
    targets: dict[str, Target]
    average: AverageView | None = None


class TargetSource(Protocol):
    """Turns planned batches into examples, in order."""

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        """Yield every batch of a plan with its example; `plan()` may be called more than once."""

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's place in the data after the last batch that was yielded, as plain data."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from a place, given that of every rank."""


class OnlineTargets:
    """Runs every teacher at every step, each on its own crop of the view, shifted by whole patches.

    The view is a random part of the image, `max_shift_patches` larger than the student's crop on each side;
    all crops are cut from it, so that only their place differs.

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        images: Map-style, uint8 `(3, height, width)`; or streams of this rank.
        teachers: By name.
        device: Where teachers and student are.
    """

    def __init__(
        self,
        recipe: Recipe,
        patch_size: int,
        images: Dataset[Tensor] | PartitionStreams,
        teachers: Mapping[str, nn.Module],
        device: torch.device,
    ) -> None:
        self.recipe, self.patch_size = recipe, patch_size
        self.teachers, self.device = teachers, device
        self.views = build_view_loader(images, recipe, pin_memory=device.type == "cuda")

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        for batch, views in self.views.views(plan, self._view_side_px):
            yield batch, self._example(batch, views)

    def state_dict(self) -> dict[str, Any]:
        return self.views.state_dict()

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        self.views.load_state_dict(states)

    def _view_side_px(self, batch: Batch) -> int:
        return batch.size_px + 2 * self.recipe.views.max_shift_patches * self.patch_size

    def _example(self, batch: Batch, views: Tensor) -> Example:
        recipe = self.recipe.views
        views = views.to(self.device, non_blocking=True).float() / 255
        views = flip(views, draw_flips(batch, recipe))
        student_shift = draw_shifts(batch, "student", recipe)
        pixel_values = jitter_colour(self._crop(batch, views, student_shift), batch, recipe)
        targets = {}
        for name in batch.teachers:
            shift = draw_shifts(batch, name, recipe)
            with torch.no_grad():
                output = self.teachers[name](self._crop(batch, views, shift))
            targets[name] = Target(output.summary, output.features, (shift - student_shift).to(self.device))
        return Example(pixel_values, targets, self._average_view(batch, views, student_shift))

    def _average_view(self, batch: Batch, views: Tensor, student_shift: Tensor) -> AverageView | None:
        """Return the crop of the moving average, shifted as independently as a teacher's."""
        if not self.recipe.mesa.is_due(batch.step):
            return None
        shift = draw_shifts(batch, "average", self.recipe.views)
        pixel_values = jitter_colour(self._crop(batch, views, shift), batch, self.recipe.views)
        return AverageView(pixel_values, (shift - student_shift).to(self.device))

    def _crop(self, batch: Batch, views: Tensor, shift: Tensor) -> Tensor:
        offsets = (shift + self.recipe.views.max_shift_patches) * self.patch_size
        return cut_windows(views, offsets, batch.size_px)


class CachedTargets:
    """Windows and flips of whole images whose teacher features were computed once.

    The teachers' position patterns stay where they are while the student's window moves over them by whole
    patches, so the student cannot learn them: the shift-equivariance of the online mode. Summaries are those
    of the whole image.

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        cache: Views and teacher features.
        device: Where the student is.

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
                        f"`partitions.{partition.name}`: a window of {window} px must be a multiple of the patch "
                        f"({patch_size}) and at most `data.image_size_px` ({side_px}) with cached teacher features."
                    )
        self.num_cells = side_px // patch_size

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        for batch in plan():
            yield batch, self._example(batch)

    def state_dict(self) -> dict[str, Any]:
        return {}  # which images a step sees depends on its number only

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        return

    def _example(self, batch: Batch) -> Example:
        window_cells = batch.window_px // self.patch_size
        offsets = draw_window_offsets(batch, "offset", self.num_cells, window_cells)
        is_flipped = draw_flips(batch, self.recipe.views)

        def window(maps: Tensor, offsets: Tensor = offsets) -> Tensor:
            """Cut the batch's windows out of pixels or features, whatever their number of rows per patch."""
            rows_per_cell = maps.shape[2] // self.num_cells
            side = window_cells * rows_per_cell
            return flip(cut_windows(maps, offsets * rows_per_cell, side), is_flipped).to(self.device)

        images = self.cache.images(batch.indices)
        targets = {
            name: Target(
                summary=None if summary is None else summary.to(self.device).float(),
                features=window(features).float(),
                shift=None,
            )
            for name, (summary, features) in self.cache.answers(batch.indices).items()
            if name in batch.teachers
        }
        average = None
        if self.recipe.mesa.is_due(batch.step):
            other_offsets = draw_window_offsets(batch, "average", self.num_cells, window_cells)
            shift = exact_shift(other_offsets - offsets, window_cells, batch.size_px // self.patch_size)
            pixel_values = self._student_images(window(images, offsets + shift.in_cells), batch)
            average = AverageView(pixel_values, flip_shift(shift.in_tokens, is_flipped).to(self.device))
        return Example(self._student_images(window(images), batch), targets, average)

    def _student_images(self, windows: Tensor, batch: Batch) -> Tensor:
        """Return uint8 windows as the student sees them: at its size, with changed colours, in [0, 1]."""
        return jitter_colour(_resize(windows.float() / 255, batch.size_px), batch, self.recipe.views)


def _resize(images: Tensor, side_px: int) -> Tensor:
    if images.shape[-1] == side_px:
        return images
    size = (side_px, side_px)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
