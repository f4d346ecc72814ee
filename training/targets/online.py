"""Examples from teachers that run at every step, each on its own shifted crop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from training.data.image_table import Images
from training.losses.alignment import shows_image
from training.recipe import Recipe
from training.recipe_sections import target_name
from training.targets.examples import AverageView, Example, Target
from training.teachers.base import Teacher, by_network, split_answer
from training.views.crops import (
    AVERAGE,
    STUDENT,
    Seen,
    Sight,
    change_colors,
    draw_colors,
    draw_flips,
    draw_other_shifts,
    draw_shifts,
)
from training.views.loaders import PartitionStreams, build_view_loader
from training.views.plan import Batch


Part = tuple[Batch, list[Seen]]
"""A batch, and the crops of each of its groups."""


class OnlineTargets:
    """Runs every teacher at every step, each on its own crop of the image, shifted by whole patches.

    One region of the image is drawn, whatever the student's resolution. Student, moving average and teachers get crops
    of the region's size, displaced by whole patches of the student. Each crop is resized once, from the decoded image
    to the input size of its network. Teachers return features on their own grids (C-RADIOv4 2.2 and 2.3).

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        images: Map-style, uint8 `(3, height, width)`; or streams of this rank.
        teachers: By name.
        device: Device of teachers and student.
    """

    def __init__(
        self,
        recipe: Recipe,
        patch_size: int,
        images: Images | PartitionStreams,
        teachers: Mapping[str, Teacher],
        device: torch.device,
    ) -> None:
        self.recipe, self.patch_size = recipe, patch_size
        self.teachers, self.device = teachers, device
        self.views = build_view_loader(images, recipe, device)
        self._scales = {each.name: each.crop_scale or recipe.views.crop_scale for each in recipe.partitions}

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        for parts in self._parts_at_once(self.views.views(plan, self._sights)):
            targets: dict[str, list[Target]] = {}
            for names in self._by_network(parts[0][0]):
                targets |= self._targets(names, parts)
            for number, (batch, groups) in enumerate(parts):
                own = {name: of_parts[number] for name, of_parts in targets.items()}
                yield batch, self._example(batch, groups, own)

    def student_images(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[list[Tensor]]:
        for batch, groups in self.views.views(plan, lambda batch: self._sights_of(batch, [STUDENT])):
            yield self._student_images(STUDENT, batch, groups)

    def state_dict(self) -> dict[str, Any]:
        return self.views.state_dict()

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        self.views.load_state_dict(states)

    def _parts_at_once(self, views: Iterator[Part]) -> Iterator[list[Part]]:
        """Yield the accumulated parts of a partition's step that teachers process together; none is read ahead."""
        for first in views:
            left = next(each.accumulation_steps for each in self.recipe.partitions if each.name == first[0].partition)
            parts = [first]
            while left:
                parts += islice(views, min(self.recipe.views.parts_at_once, left) - len(parts))
                left -= len(parts)
                yield parts
                parts = []

    def _sights(self, batch: Batch) -> list[Sight]:
        """Return the crops of each image for the student, the teachers and, if MESA is due, the moving average."""
        has_average = self.recipe.mesa.is_due(batch.step)
        viewers = [names[0] for names in self._by_network(batch)]
        return self._sights_of(batch, [STUDENT, *viewers, *([AVERAGE] if has_average else [])])

    def _by_network(self, batch: Batch) -> list[list[str]]:
        """Return the names of a batch's teachers by network; teachers of one network get the crop of the first."""
        return by_network({name: self.teachers[name] for name in batch.teachers})

    def _sights_of(self, batch: Batch, viewers: Sequence[str]) -> list[Sight]:
        shifts = {viewer: self._shifts_of(viewer, batch).tolist() for viewer in viewers}
        sizes = {}
        for shape, _ in batch.groups:
            student = ((shape.grid.rows * self.patch_size, shape.grid.cols * self.patch_size),)
            sizes[shape.grid] = {
                viewer: self.teachers[viewer].input_sizes(*shape.grid) if viewer in self.teachers else student
                for viewer in viewers
            }
        regions, flips = batch.uniform("region", 4).tolist(), draw_flips(batch, self.recipe.views).tolist()
        return [
            Sight(
                tuple(region),
                self._scales[batch.partition],
                shape.grid,
                is_flipped,
                {viewer: tuple(shifts[viewer][row]) for viewer in viewers},
                sizes[shape.grid],
            )
            for row, (region, shape, is_flipped) in enumerate(zip(regions, batch.shapes, flips, strict=True))
        ]

    def _example(self, batch: Batch, groups: list[Seen], targets: dict[str, Target]) -> Example:
        average = None
        if self.recipe.mesa.is_due(batch.step):
            average = AverageView(self._student_images(AVERAGE, batch, groups), self._shifts(AVERAGE, batch))
        images = self._student_images(STUDENT, batch, groups)
        return Example(images, targets, average, self._extents(STUDENT, batch, groups))

    def _student_images(self, viewer: str, batch: Batch, groups: list[Seen]) -> list[Tensor]:
        """Return the images of the student or its average, with changed colors, in [0, 1]."""
        contrast, brightness = draw_colors(batch, self.recipe.views)
        return [
            change_colors(self._pixels(seen.pixels[viewer][0]), contrast[group], brightness[group])
            for (_, group), seen in zip(batch.groups, groups, strict=True)
        ]

    def _shifts_of(self, viewer: str, batch: Batch) -> Tensor:
        """Return the patches between the region and each of a network's crops, `(batch, 2)`."""
        views = self.recipe.views
        if viewer == AVERAGE:
            return draw_other_shifts(batch, viewer, views, self._shifts_of(STUDENT, batch))
        return draw_shifts(batch, viewer, views)

    def _shifts(self, viewer: str, batch: Batch) -> list[Tensor]:
        """Return for each group a network's crops minus the student's, `(images, 2)` in patches."""
        return self._by_group(self._shifts_of(viewer, batch) - self._shifts_of(STUDENT, batch), batch)

    def _extents(self, viewer: str, batch: Batch, groups: list[Seen]) -> list[Tensor]:
        """Return for each group the part of a network's crops that shows the image, `(images, 2, 2)`."""
        seen = torch.cat([each.extent for each in groups])
        return self._by_group(seen - self._shifts_of(viewer, batch)[:, :, None], batch)

    def _by_group(self, values: Tensor, batch: Batch) -> list[Tensor]:
        return [values[group].to(self.device, non_blocking=True) for _, group in batch.groups]

    def _targets(self, names: list[str], parts: list[Part]) -> dict[str, list[Target]]:
        """Run a network once for some parts of a step.

        Args:
            names: The teachers of this network.
            parts: Batches and their crops.

        Returns:
            By name the targets of each teacher and of its inner depths, one for each part.
        """
        viewer = names[0]
        inputs = [[self._pixels(images) for images in seen.pixels[viewer]] for _, groups in parts for seen in groups]
        readers = [self.teachers[name] for name in names]
        answers = iter([split_answer(answer, readers) for answer in readers[0](inputs, readers)])
        targets: dict[str, list[Target]] = {}
        for batch, groups in parts:
            shifts, extents = self._shifts(viewer, batch), self._extents(viewer, batch, groups)
            for name, own in zip(names, zip(*islice(answers, len(groups)), strict=True), strict=True):
                summaries = [summary for summary, _ in own if summary is not None]
                shown = [
                    shows_image(extent, maps[0].shape[2:], seen.grid)
                    for extent, (_, maps), seen in zip(extents, own, groups, strict=True)
                ]
                for index, depth in enumerate((1.0, *self.recipe.inner_depths().get(name, []))):
                    summary = torch.cat(summaries) if summaries and not index else None
                    target = Target(summary, [maps[index] for _, maps in own], shifts, shown)
                    targets.setdefault(target_name(name, depth), []).append(target)
        return targets

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float() / 255
