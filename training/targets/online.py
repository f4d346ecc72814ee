"""Teachers that run at every step, each on its own shifted crop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.data.image_table import Images
from training.recipe import Recipe
from training.targets.examples import AverageView, Example, Target
from training.views.batches import Batch
from training.views.crops import (
    cut_windows,
    draw_flips,
    draw_shifts,
    flip,
    jitter_color,
)
from training.views.loaders import PartitionStreams, build_view_loader


class OnlineTargets:
    """Runs every teacher at every step, each on its own crop of the view, shifted by whole patches.

    The view is a random part of the image, `max_shift_patches` larger than the student's crop on each side;
    all crops are cut from it, so that they differ in their position only.

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
        images: Images | PartitionStreams,
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
        pixel_values = jitter_color(self._crop(batch, views, student_shift), batch, recipe)
        all_student_shifts = draw_shifts(batch, "student", recipe, is_whole=True)
        targets = {}
        for name in batch.teachers:
            shift = draw_shifts(batch, name, recipe)
            with torch.no_grad():
                output = self.teachers[name](self._crop(batch, views, shift))
            all_shifts = draw_shifts(batch, name, recipe, is_whole=True) - all_student_shifts
            shifts = (shift - student_shift).to(self.device), all_shifts.to(self.device)
            targets[name] = Target(output.summary, output.features, *shifts)
        return Example(pixel_values, targets, self._average_view(batch, views, student_shift))

    def _average_view(self, batch: Batch, views: Tensor, student_shift: Tensor) -> AverageView | None:
        """Return the crop of the moving average, shifted as independently as a teacher's."""
        if not self.recipe.mesa.is_due(batch.step):
            return None
        shift = draw_shifts(batch, "average", self.recipe.views)
        pixel_values = jitter_color(self._crop(batch, views, shift), batch, self.recipe.views)
        return AverageView(pixel_values, (shift - student_shift).to(self.device))

    def _crop(self, batch: Batch, views: Tensor, shift: Tensor) -> Tensor:
        offsets = (shift + self.recipe.views.max_shift_patches) * self.patch_size
        return cut_windows(views, offsets, batch.size_px)
