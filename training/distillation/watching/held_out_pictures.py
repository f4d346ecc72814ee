"""Pictures of a run in progress: held-out images, what each teacher says of them, and what the student says by now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.distillation.watching.held_out_images import held_out_images
from training.pictures.columns import Column, adaptor_column, draw_columns, photograph_column, teacher_column
from training.pictures.features import PcaBasis, fit_pca_basis
from training.recipe import PartitionRecipe, Recipe
from training.teachers.base import Teacher


NUM_PICTURE_IMAGES = 4  # our choice: as many rows as can be compared at a glance
CAPTION = (
    "Step {step}. Principal components of dense features; an adaptor is drawn along those of its teacher, in a range "
    "of its own."
)


class HeldOutPictures:
    """Draws the student's adaptors beside their teachers, along the same directions.

    The teachers answer once, here; a picture needs one pass of the student. Nothing draws random numbers.

    Args:
        images: uint8 RGB, `(num_images, 3, height, width)`.
        teachers: By name; all that are drawn in the main process, which draws alone.
        device: Where teachers and student are.
        folder: Where `step-N.png` is written.
    """

    def __init__(self, images: Tensor, teachers: Mapping[str, Teacher], device: torch.device, folder: Path) -> None:
        self.pixel_values = images.to(device).float() / 255
        self.folder = folder
        self._photographs = photograph_column(images)
        self._teachers: dict[str, tuple[Column, PcaBasis]] = {}
        for name, teacher in teachers.items():
            features = teacher.answer(self.pixel_values).features.cpu()
            basis = fit_pca_basis(features)
            self._teachers[name] = (teacher_column(name, features, basis), basis)

    @classmethod
    def of_run(
        cls, recipe: Recipe, teachers: Mapping[str, Teacher], device: torch.device, folder: Path
    ) -> HeldOutPictures | None:
        """Return the pictures of a recipe, None where it has none: too few steps, or no held-out images to show.

        Raises:
            RecipeError: If `logging.picture_source` cannot be used.
        """
        every_steps = recipe.logging.picture_every_steps
        if every_steps is None or every_steps > recipe.schedule.num_steps:
            return None
        partition = _widest_partition(recipe)
        size = _size_px(recipe, partition)
        images = held_out_images(recipe, size, NUM_PICTURE_IMAGES, "logging.picture_every_steps")
        if images is None:
            return None
        shown = {name: teachers[name] for name in partition.teachers or teachers if name in teachers}
        return cls(images, shown, device, folder)

    def draw(self, step: int, adaptors: Mapping[str, Tensor]) -> Path:
        """Write the picture of a step and return its path.

        Args:
            step: Steps done so far.
            adaptors: By teacher name, their dense features of `pixel_values` in the teacher's own space,
                `(num_images, dim, rows, cols)`.

        Raises:
            WriteError: If it cannot be written.
        """
        columns = [self._photographs]
        for name, (column, basis) in self._teachers.items():
            columns += [column, adaptor_column(name, adaptors[name].float().cpu(), basis)]
        path = self.folder / f"step-{step}.png"
        draw_columns(columns, path, caption=CAPTION.format(step=step))
        return path


def _widest_partition(recipe: Recipe) -> PartitionRecipe:
    """Return the partition that most teachers see, the first of several."""
    return max(recipe.partitions, key=lambda partition: len(partition.teachers or recipe.teachers))


def _size_px(recipe: Recipe, partition: PartitionRecipe) -> int:
    """Return the largest size at which both the student and the teachers see images."""
    size = max(partition.sizes_px)
    return size if recipe.views.teachers == "online" else min(size, recipe.data.image_size_px)
