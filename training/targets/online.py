"""Examples from teachers that run at every step, each on its own shifted crop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from modeling_radio.data.decoding import ImageSize
from modeling_radio.data.image_table import Images
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.targets.examples import Example, OwnImages, Target
from modeling_radio.training.teachers.base import Teacher, by_network, split_output
from modeling_radio.training.views.crops import (
    AVERAGE,
    STUDENT,
    ComparedMaps,
    CropSpec,
    GroupCrops,
    change_colors,
    draw_colors,
    plan_crops,
)
from modeling_radio.training.views.loaders import PartitionStreams, build_view_loader
from modeling_radio.training.views.packed_tensors import PackedTensors
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid


CroppedBatch = tuple[PlannedBatch, list[GroupCrops]]
"""A batch, and the crops of each of its groups."""


class OnlineTargets:
    """Runs every teacher at every step, each on its own crop of the image, shifted by whole patches.

    One region of the image is drawn, whatever the student's resolution. Student, moving average and teachers get crops
    of the region's size, displaced by whole patches of the student. Each crop is resized once, from the decoded image
    to the input size of its network. Teachers return features on their own grids (C-RADIOv4 2.2 and 2.3).

    Args:
        recipe: The recipe.
        patch_size: The student's patch in pixels.
        images: Map-style, uint8 `(3, height, width)`, or of other channels float32 in [0, 1]; or streams of this rank.
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

    def examples(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[tuple[PlannedBatch, Example]]:
        for parts in self._parts_at_once(self.views.views(plan, self._plan_crops)):
            taught = [part for part in parts if part[0].teachers]  # others have no images of their own
            targets: dict[str, Iterator[Target | None]] = {}
            if not taught:
                self._join_calls(parts[0][0].partition)
            for names in self._by_network(taught[0][0].teachers) if taught else ():
                targets |= {name: iter(of_parts) for name, of_parts in self._targets(names, taught).items()}
            for batch, groups in parts:
                own = {name: next(of_parts) for name, of_parts in targets.items()} if batch.teachers else {}
                seen = {name: target for name, target in own.items() if target is not None}
                yield batch, self._example(batch, groups, seen)

    def student_images(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[list[Tensor]]:
        for batch, groups in self.views.views(plan, self._plan_student_crops):
            yield self._student_images(STUDENT, batch, groups)

    def state_dict(self) -> dict[str, Any]:
        return self.views.state_dict()

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        self.views.load_state_dict(states)

    def _parts_at_once(self, views: Iterator[CroppedBatch]) -> Iterator[list[CroppedBatch]]:
        """Yield the accumulated parts of a partition's step that teachers process together; none is read ahead."""
        parts: list[CroppedBatch] = []
        for part in views:
            parts.append(part)
            if part[0].is_last or len(parts) == self.recipe.views.parts_at_once:
                yield parts
                parts = []

    def _join_calls(self, partition: str) -> None:
        """Take part in other ranks' calls of the sharded teachers of a partition."""
        seen = next(each.teachers for each in self.recipe.partitions if each.name == partition)
        for names in self._by_network([name for name in self.teachers if not seen or name in seen]):
            self.teachers[names[0]].join_calls()

    def _plan_crops(self, batch: PlannedBatch) -> list[CropSpec]:
        """Return the crops of each image for the student, the teachers and, if MESA is due, the moving average."""
        networks = self._by_network(batch.teachers)
        sizes = {STUDENT: self._student_sizes, **{names[0]: self._input_sizes(names[0]) for names in networks}}
        maps = {names[0]: self._compared_maps(names) for names in networks}
        if self.recipe.has_mesa(batch.step):
            sizes[AVERAGE], maps[AVERAGE] = self._student_sizes, lambda grid: ComparedMaps(grid, (grid,))
        return plan_crops(batch, self.recipe, sizes, maps)

    def _plan_student_crops(self, batch: PlannedBatch) -> list[CropSpec]:
        return plan_crops(batch, self.recipe, {STUDENT: self._student_sizes})

    def _student_sizes(self, grid: Grid) -> tuple[ImageSize, ...]:
        return ((grid.rows * self.patch_size, grid.cols * self.patch_size),)

    def _input_sizes(self, name: str) -> Callable[[Grid], tuple[ImageSize, ...]]:
        return lambda grid: self.teachers[name].input_sizes(*grid)

    def _compared_maps(self, names: Sequence[str]) -> Callable[[Grid], ComparedMaps]:
        """Return the maps of the teachers of one network, and of the student's heads for them."""
        factors = dict.fromkeys(factor for name in names for factor in self.recipe.dense_factors(name))

        def compared_maps(grid: Grid) -> ComparedMaps:
            own = self.teachers[names[0]].output_sides(*grid)
            heads = tuple((grid.rows * factor, grid.cols * factor) for factor in factors)
            return ComparedMaps(own, heads, self.recipe.loss.border == "extended")

        return compared_maps

    def _by_network(self, names: Iterable[str]) -> list[list[str]]:
        """Return teachers by network, which get the crop of the first one; sharded ones in the order of all ranks."""
        networks = by_network({name: self.teachers[name] for name in names})
        return sorted(networks, key=lambda own: calls.turn if (calls := self.teachers[own[0]].equal_calls) else -1)

    def _example(self, batch: PlannedBatch, groups: list[GroupCrops], targets: dict[str, Target]) -> Example:
        images = self._student_images(STUDENT, batch, groups)
        if not self.recipe.has_mesa(batch.step):
            return Example(images, targets)
        average = self._student_images(AVERAGE, batch, groups)
        return Example(images, targets, average, [crops.alignments[AVERAGE] for crops in groups])

    def _student_images(self, consumer: str, batch: PlannedBatch, groups: list[GroupCrops]) -> list[Tensor]:
        """Return the images of the student or its average, with changed colors, in [0, 1]."""
        images = [self._pixels(crops.pixels[consumer][0]) for crops in groups]
        contrast, brightness = draw_colors(batch, self.recipe.views, images[0].shape[1])
        return [
            change_colors(own, contrast[group], brightness[group])
            for (_, group), own in zip(batch.groups, images, strict=True)
        ]

    def _targets(self, names: list[str], parts: list[CroppedBatch]) -> dict[str, list[Target | None]]:
        """Run a network once for some parts of a step.

        Args:
            names: The teachers of this network.
            parts: Batches and their crops.

        Returns:
            By name the targets of each teacher, one for each part; None for a part of which it sees no image.
        """
        consumer = names[0]
        seen = [[crops for crops in groups if consumer in crops.pixels] for _, groups in parts]
        white = self.recipe.data.rgb_white
        inputs = [
            [self._pixels(images, white) for images in crops.pixels[consumer]] for groups in seen for crops in groups
        ]
        readers = [self.teachers[name] for name in names]
        outputs = iter([split_output(joint, readers) for joint in readers[0](inputs, readers)] if inputs else [])
        targets: dict[str, list[Target | None]] = {}
        for (batch, _), groups in zip(parts, seen, strict=True):
            alignments = [crops.alignments[consumer] for crops in groups]
            images = PackedTensors.of(OwnImages.of(batch, consumer)).to(self.device)
            by_reader = list(zip(*islice(outputs, len(groups)), strict=True)) or [()] * len(names)
            for name, own in zip(names, by_reader, strict=True):
                summaries = [summary for summary, _ in own if summary is not None]
                summary = torch.cat(summaries) if summaries else None
                target = Target(summary, [features for _, features in own], alignments, images) if own else None
                targets.setdefault(name, []).append(target)
        return targets

    def _pixels(self, images: Tensor, white: float = 1.0) -> Tensor:
        moved = images.to(self.device, non_blocking=True)
        return moved.float() / 255 if moved.dtype == torch.uint8 else (moved / white).clamp(max=1)
