"""From planned batches to student images with each teacher's answer: teachers run now, or their cached features."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from training.batches import Batch
from training.feature_cache import FeatureCache
from training.interruption import ignore_stop_signals
from training.recipe import Recipe, RecipeError
from training.views import (
    crop_region,
    cut_windows,
    draw_flips,
    draw_shifts,
    draw_window_offsets,
    flip,
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


class Example(NamedTuple):
    """What a student learns from in one forward pass.

    Attributes:
        pixel_values: `(batch, 3, size, size)`, RGB in [0, 1].
        targets: By teacher name.
    """

    pixel_values: Tensor
    targets: dict[str, Target]


class TargetSource(Protocol):
    """Turns planned batches into examples, in order."""

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        """Yield every batch of a plan with its example; `plan()` may be called more than once."""


class OnlineTargets:
    """Runs every teacher at every step, each on its own crop of the view, shifted by whole patches.

    The view is a random part of the image, `max_shift_patches` larger than the student's crop on each side;
    all crops are cut from it, so that only their place differs.

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        images: Map-style, uint8 `(3, height, width)`.
        teachers: By name.
        device: Where teachers and student are.
    """

    def __init__(
        self,
        recipe: Recipe,
        patch_size: int,
        images: Dataset[Tensor],
        teachers: Mapping[str, nn.Module],
        device: torch.device,
    ) -> None:
        self.recipe, self.patch_size, self.images = recipe, patch_size, images
        self.teachers, self.device = teachers, device

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        loader = DataLoader(
            _ViewDataset(self.images, self.recipe),
            batch_sampler=_ViewRequests(plan, self._view_side_px),
            num_workers=self.recipe.data.num_workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self.device.type == "cuda",
        )
        for batch, views in zip(plan(), loader, strict=True):
            yield batch, self._example(batch, views)

    def _view_side_px(self, batch: Batch) -> int:
        return batch.size_px + 2 * self.recipe.views.max_shift_patches * self.patch_size

    def _example(self, batch: Batch, views: Tensor) -> Example:
        recipe = self.recipe.views
        views = views.to(self.device, non_blocking=True).float() / 255
        views = flip(views, draw_flips(batch, recipe))
        student_shift = draw_shifts(batch, "student", recipe)
        pixel_values = jitter_colour(self._crop(batch, views, student_shift), batch, recipe)
        targets = {}
        for name, teacher in self.teachers.items():
            shift = draw_shifts(batch, name, recipe)
            with torch.no_grad():
                output = teacher(self._crop(batch, views, shift))
            targets[name] = Target(output.summary, output.features, (shift - student_shift).to(self.device))
        return Example(pixel_values, targets)

    def _crop(self, batch: Batch, views: Tensor, shift: Tensor) -> Tensor:
        offsets = (shift + self.recipe.views.max_shift_patches) * self.patch_size
        return cut_windows(views, offsets, batch.size_px)


class _ViewRequest(NamedTuple):
    index: int
    region: Tensor
    side_px: int


class _ViewRequests:
    """Batch sampler that asks the data workers for one view per row of each planned batch."""

    def __init__(self, plan: Callable[[], Iterable[Batch]], side_px: Callable[[Batch], int]) -> None:
        self.plan, self.side_px = plan, side_px

    def __iter__(self) -> Iterator[list[_ViewRequest]]:
        for batch in self.plan():
            regions, side_px = batch.uniform("region", 4), self.side_px(batch)
            yield [_ViewRequest(index, region, side_px) for index, region in zip(batch.indices, regions, strict=True)]


class _ViewDataset(Dataset[Tensor]):
    def __init__(self, images: Dataset[Tensor], recipe: Recipe) -> None:
        self.images, self.views = images, recipe.views

    def __getitem__(self, index: _ViewRequest) -> Tensor:
        image, region, side_px = index
        return crop_region(self.images[image], region, side_px, self.views)


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

    def _example(self, batch: Batch) -> Example:
        recipe = self.recipe.views
        offsets = draw_window_offsets(batch, self.num_cells, batch.window_px // self.patch_size)
        is_flipped = draw_flips(batch, recipe)

        def window(maps: Tensor) -> Tensor:
            """Cut the batch's windows out of pixels or features, whatever their number of rows per patch."""
            rows_per_cell = maps.shape[2] // self.num_cells
            side = batch.window_px // self.patch_size * rows_per_cell
            return flip(cut_windows(maps, offsets * rows_per_cell, side), is_flipped).to(self.device)

        images = window(self.cache.images(batch.indices)).float() / 255
        targets = {
            name: Target(
                summary=None if summary is None else summary.to(self.device).float(),
                features=window(features).float(),
                shift=None,
            )
            for name, (summary, features) in self.cache.answers(batch.indices).items()
        }
        return Example(jitter_colour(_resize(images, batch.size_px), batch, recipe), targets)


def _resize(images: Tensor, side_px: int) -> Tensor:
    if images.shape[-1] == side_px:
        return images
    size = (side_px, side_px)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
