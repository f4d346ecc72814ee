"""Windows and flips of images whose teacher features were computed once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.recipe import Recipe, RecipeError
from training.targets.examples import AverageView, Example, Target
from training.targets.feature_cache import FeatureCache
from training.views.batches import Batch
from training.views.crops import (
    cut_windows,
    draw_flips,
    draw_window_offsets,
    exact_shift,
    flip,
    flip_shift,
    jitter_color,
)


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
                        f"`partitions.{partition.name}` must have windows that are multiples of the patch "
                        f"({patch_size}) and at most `data.image_size_px` ({side_px}) with cached features, got "
                        f"{window} px."
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
        """Return uint8 windows as the student sees them: at its size, with changed colors, in [0, 1]."""
        return jitter_color(_resize(windows.float() / 255, batch.size_px), batch, self.recipe.views)


def _resize(images: Tensor, side_px: int) -> Tensor:
    if images.shape[-1] == side_px:
        return images
    size = (side_px, side_px)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
