"""Images of each step with their sizes and windows, on each rank: a pure function of recipe and step number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_radio.core.seeds import make_generator
from modeling_radio.data.image_table import Images
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError
from modeling_radio.training.views.dealing import (
    FEW_IMAGES,
    cut_by_shape,
    cut_evenly,
    deal_teachers,
    divide_ranks,
    parts_of_rank,
    share_by_shape,
)
from modeling_radio.training.views.shapes import (
    Grid,
    ImageShape,
    StepShapes,
    most_tokens,
    plan_shapes,
    size_shares,
    used_px,
)
from modeling_radio.training.views.windows import draw_window


Operations = Mapping[str, Mapping[int, float]]
"""By partition, by an image's number of patches, what it takes: see `BatchPlan`."""


def _size_of(shape: ImageShape) -> tuple[int, ImageShape]:
    return shape.grid.num_tokens, shape


class SeenImages(NamedTuple):
    """Images that a teacher sees, where each image is shown to some of the teachers.

    Attributes:
        places: Their places in a batch.
        share: Share of the images that the teacher sees in the mean over steps. Losses are divided by it and not by the
            share that a step happened to deal, so that each image has the same weight in expectation.
    """

    places: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class PlannedBatch:
    """One forward pass of one rank: a part of a partition's images of one step.

    Random numbers for views are drawn for the step's whole batch and cut to this part, so neither the number of ranks
    nor accumulation changes the views.

    Attributes:
        seed: The run's seed.
        step: 0-based optimizer step.
        partition: Name of the partition.
        shapes: Size of each image; images of one shape are neighbors.
        indices: Number of each image in the data set.
        rows: Their indices in the step's whole batch of this partition.
        num_images: Number of images of that whole batch.
        weight: Factor of this part's mean loss. The sum over a rank's parts, averaged over ranks as DDP and FSDP
            average gradients, is the sum of the partitions' means times their weights, whatever the ranks and parts.
            0 for an empty part: it has one image of another part, so that all ranks run a pass; see `BatchPlan`.
        teachers: Names of the teachers that see these images, in the recipe's order, so that ranks agree on it; none
            for a part without images.
        size_px: The resolution that the step drew; None if each image has drawn its own.
        vitdet_window: Side in tokens of the student's attention windows; None for global attention.
        is_last: Whether no other part of this partition's step on this rank follows.
        seen: By teacher the images that it sees; None if each of `teachers` sees all.
    """

    seed: int
    step: int
    partition: str
    shapes: tuple[ImageShape, ...]
    indices: tuple[int, ...]
    rows: tuple[int, ...]
    num_images: int
    weight: float
    teachers: tuple[str, ...]
    size_px: int | None = None
    vitdet_window: int | None = None
    is_last: bool = True
    seen: Mapping[str, SeenImages] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def groups(self) -> list[tuple[ImageShape, slice]]:
        """Neighbors of one shape: the shape, and their slice of the batch."""
        groups, start = [], 0
        for shape, images in groupby(self.shapes):
            stop = start + len(list(images))
            groups.append((shape, slice(start, stop)))
            start = stop
        return groups

    def is_seen(self, place: int, viewer: str) -> bool:
        """Return whether a viewer gets the image at a place of this batch; the student and its average get all."""
        return self.seen is None or viewer not in self.seen or place in self.seen[viewer].places

    def uniform(self, label: str, *shape: int) -> Tensor:
        """Return numbers in [0, 1), `(len(self), *shape)`; each label has random numbers of its own."""
        generator = make_generator(self.seed, label, self.partition, self.step)
        return torch.rand(self.num_images, *shape, generator=generator)[list(self.rows)]

    def normal(self, label: str, *shape: int) -> Tensor:
        """Return standard normal numbers, `(len(self), *shape)`; each label has random numbers of its own."""
        generator = make_generator(self.seed, label, self.partition, self.step)
        return torch.randn(self.num_images, *shape, generator=generator)[list(self.rows)]


class BatchPlan:
    """The batches of a run.

    Each partition walks through its own endless sequence of shuffled epochs, without dropping a remainder. Images of a
    step that differ in size go, those that take most operations first, to the rank with the fewest so far, counted over
    all partitions; so ranks are done at about the same time.

    A rank has at most as many parts of a partition as it has images in the mean. A rank or a part may have none. Ranks
    exchange gradients in a backward pass, so it passes the partition's first image through the student all the same, at
    the smallest size of the step, with a weight of 0 and for no teacher: the gradient is that of fewer ranks.

    Args:
        recipe: The recipe.
        num_images: Size of the data set; None for streams, whose images come in order: `PlannedBatch.indices`
            counts them.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        patch_size: The student's patch in pixels, which decides the windows that a resolution can have.
        image_numbers: By name of the partition the numbers of the images that it sees; without an entry all.
        operations: By name of the partition, by number of patches, the operations of an image; those of other numbers
            lie between. None counts patches.

    Raises:
        RecipeError: If the ranks cannot be shared as the partitions say, or a token budget holds no image.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_images: int | None,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        patch_size: int,
        image_numbers: Mapping[str, Tensor] | None = None,
        operations: Operations | None = None,
    ) -> None:
        self.recipe, self.num_images, self.rank, self.num_ranks = recipe, num_images, rank, num_ranks
        self.patch_size = patch_size
        self._image_numbers = image_numbers or {}
        self._teachers = [teacher.name for teacher in recipe.teachers]
        self._ranks, self._operations = divide_ranks(recipe.partitions, num_ranks), operations
        for partition in recipe.partitions:
            self._check_room(partition)
        self._shapes = {partition.name: plan_shapes(recipe, partition, patch_size) for partition in recipe.partitions}
        self._epochs: dict[str, dict[int, Tensor]] = {}

    def check_equal_passes(self) -> None:
        """Refuse ranks with different numbers of forward passes per step.

        With FSDP all ranks gather the weights together, in every pass: a rank with fewer passes would leave the others
        waiting.

        Raises:
            RecipeError: If the numbers differ.
        """
        passes = [self._passes_of(rank) for rank in range(self.num_ranks)]
        if min(passes) != max(passes):
            steps = {partition.name: self._num_parts(partition) for partition in self.recipe.partitions}
            raise RecipeError(
                "`partitions` must have equally many forward passes per step on every rank with FSDP, got "
                f"{min(passes)} to {max(passes)}. Give partitions with a `rank_share` equal "
                f"`accumulation_steps` (now {steps})."
            )

    def step(self, step: int) -> list[PlannedBatch]:
        """Return this rank's batches of one step: all of its partitions, all accumulated parts."""
        planned = {name: shapes.step(step) for name, shapes in self._shapes.items()}
        rows = self._deal(step, planned)[self.rank]
        smallest = min((shape for each in planned.values() for shape in each.shapes), key=_size_of)
        own = [partition for partition in self.recipe.partitions if self.rank in self._ranks[partition.name]]
        return [
            batch
            for partition in own
            for batch in self._parts(partition, step, planned[partition.name], rows[partition.name], smallest)
        ]

    def steps(self, start: int, stop: int) -> Iterator[PlannedBatch]:
        """Yield the batches of the steps in [start, stop)."""
        for step in range(start, stop):
            yield from self.step(step)

    @property
    def images_per_step(self) -> int:
        """Number of images of one step, over all ranks."""
        return sum(shapes.images_per_step for shapes in self._shapes.values())

    @property
    def batches_per_step(self) -> int:
        """Number of forward passes of one step on this rank."""
        return self._passes_of(self.rank)

    def _passes_of(self, rank: int) -> int:
        return sum(self._num_parts(each) for each in self.recipe.partitions if rank in self._ranks[each.name])

    def _num_parts(self, partition: PartitionRecipe) -> int:
        return parts_of_rank(partition, len(self._ranks[partition.name]), self.patch_size)

    def _check_room(self, partition: PartitionRecipe) -> None:
        """Refuse a budget that may not hold an image."""
        if partition.token_budget is None:
            return
        largest = max(most_tokens(self.recipe, size, self.patch_size) for size in size_shares(partition))
        if partition.token_budget < largest:
            raise RecipeError(
                f"`partitions.{partition.name}.token_budget` must be at least {largest}, an image of the largest size, "
                f"got {partition.token_budget}."
            )

    def shapes_of_ranks(self, step: int) -> list[dict[str, list[list[Grid]]]]:
        """Return what each rank has of a step: by partition, for each part, the student's patches of its images."""
        planned = {name: shapes.step(step) for name, shapes in self._shapes.items()}
        by_name = {partition.name: partition for partition in self.recipe.partitions}
        return [
            {
                name: [
                    [planned[name].shapes[row].grid for row in part]
                    for part in self._cut(by_name[name], planned[name].shapes, rows)
                ]
                for name, rows in own.items()
            }
            for own in self._deal(step, planned)
        ]

    def _deal(self, step: int, planned: Mapping[str, StepShapes]) -> list[dict[str, Sequence[int]]]:
        """Return each rank's images of a step, by partition their rows.

        A rank gets images of few shapes, since networks run once for each shape. The last pack evens out what the
        others left. The ranks take turns in being first, so that each one sees images of its streams, however few a
        step has, and none always gets the many small ones.
        """
        loads, rows_of_ranks = [0.0] * self.num_ranks, [dict[str, Sequence[int]]() for _ in range(self.num_ranks)]
        partitions = self._by_room()
        for partition in partitions:
            name, ranks = partition.name, self._ranks[partition.name]
            first = step % len(ranks)
            ranks = [*ranks[first:], *ranks[:first]]
            shapes = planned[name].shapes
            costs = self._costs(name, shapes)
            parts: Sequence[Sequence[int]]
            if partition.batch_size is not None:
                parts = cut_evenly(len(costs), len(ranks))
            elif partition is not partitions[-1] and len(costs) < FEW_IMAGES * len(ranks):
                parts = cut_by_shape(costs, shapes, len(ranks))
            else:
                parts = share_by_shape(costs, shapes, [loads[rank] for rank in ranks])
            for rank, rows in zip(ranks, parts, strict=True):
                loads[rank] += sum(costs[row] for row in rows)
                rows_of_ranks[rank][name] = rows
        return rows_of_ranks

    def _cut(self, partition: PartitionRecipe, shapes: Sequence[ImageShape], rows: Sequence[int]) -> list[list[int]]:
        """Divide a rank's images of a partition into parts of about equally many patches, which need as much memory.

        A part of a pack has few shapes.
        """
        number = self._num_parts(partition)
        parts: Sequence[Sequence[int]]
        if partition.batch_size is not None:
            parts = cut_evenly(len(rows), number)
        else:
            own = [shapes[row] for row in rows]
            parts = share_by_shape([shape.grid.num_tokens for shape in own], own, [0] * number)
        return [[rows[index] for index in part] for part in parts]

    def _by_room(self) -> list[PartitionRecipe]:
        """Return the partitions in the order in which they are dealt: small images even out what large ones left."""
        sizes = {each.name: max(each.sizes_px) for each in self.recipe.partitions}
        return sorted(self.recipe.partitions, key=lambda each: (each.batch_size is None, -sizes[each.name]))

    def _costs(self, partition: str, shapes: Sequence[ImageShape]) -> list[float]:
        """Return the operations of images, or, if nobody has counted them, their patches."""
        tokens = [shape.grid.num_tokens for shape in shapes]
        if self._operations is None:
            return [float(count) for count in tokens]
        known = self._operations[partition]
        counts = sorted(known)
        return np.interp(tokens, counts, [known[count] for count in counts]).tolist()

    def _parts(
        self, partition: PartitionRecipe, step: int, planned: StepShapes, rows: Sequence[int], smallest: ImageShape
    ) -> Iterator[PlannedBatch]:
        """Yield the accumulated parts of this rank's images of a partition."""
        name, shapes, parts = partition.name, planned.shapes, self._cut(partition, planned.shapes, rows)
        window = draw_window(partition, [shape.grid for shape in shapes], self.recipe.seed, step)
        teachers = tuple(each for each in self._teachers if each in (partition.teachers or self._teachers))
        dealt = deal_teachers(partition, teachers, shapes, self.recipe.seed, step)
        for number, part in enumerate(parts, 1):
            chosen = sorted(part, key=lambda row: (shapes[row], row))
            batch = PlannedBatch(
                seed=self.recipe.seed,
                step=step,
                partition=name,
                shapes=tuple(shapes[row] for row in chosen),
                indices=tuple(self._image_at(name, planned, row) for row in chosen),
                rows=tuple(chosen),
                num_images=len(shapes),
                weight=partition.weight * self.num_ranks * len(chosen) / len(shapes),
                teachers=teachers,
                size_px=planned.size_px,
                vitdet_window=window,
                is_last=number == len(parts),
                seen=_seen_in(chosen, dealt, len(shapes)),
            )
            if not chosen:
                first = (self._image_at(name, planned, 0),)
                batch = replace(batch, shapes=(smallest,), indices=first, rows=(0,), teachers=())
                batch = replace(batch, size_px=None, vitdet_window=None, seen=None)
            yield batch

    def _image_at(self, partition: str, planned: StepShapes, row: int) -> int:
        """Return the number of an image of a step, from the partition's sequence of epochs."""
        position = planned.first + row
        if self.num_images is None:
            return position
        image_numbers = self._image_numbers.get(partition)
        number = self.num_images if image_numbers is None else len(image_numbers)
        epoch, slot = divmod(position, number)
        known = self._epochs.get(partition, {})
        if epoch not in known:
            generator = make_generator(self.recipe.seed, "epoch", partition, epoch)
            order = torch.randperm(number, generator=generator)
            known[epoch] = order if image_numbers is None else image_numbers[order]
            # A step walks through its images by size, so to and fro between its epochs.
            self._epochs[partition] = {each: known[each] for each in known if each >= planned.first // number}
        return int(known[epoch][slot])


def _seen_in(
    chosen: Sequence[int], dealt: Mapping[str, Collection[int]] | None, num_images: int
) -> dict[str, SeenImages] | None:
    """Return by teacher its images among the chosen rows of a step."""
    if dealt is None:
        return None
    expected = sum(map(len, dealt.values())) / len(dealt) / num_images  # teachers take turns
    return {
        name: SeenImages(tuple(place for place, row in enumerate(chosen) if row in rows), expected)
        for name, rows in dealt.items()
    }


def large_enough_images(images: Images, recipe: Recipe) -> dict[str, Tensor]:
    """Return the numbers of the images that each partition may see, without the partitions that may see all.

    Args:
        images: The data set.
        recipe: `data.min_side_ratio` says how large an image must be.

    Raises:
        RecipeError: If no image is large enough for a partition.
    """
    ratio, sides = recipe.data.min_side_ratio, images.short_sides()
    if ratio is None or sides is None:
        return {}
    image_numbers = {}
    for partition in recipe.partitions:
        least = ratio * used_px(recipe, partition)
        numbers = (sides >= least).nonzero().flatten()
        if not len(numbers):
            raise RecipeError(
                f"`data.min_side_ratio` must leave an image of at least {least:.0f} px for partition "
                f"{partition.name!r}, got {ratio}: the largest has {int(sides.max())} px. Lower it, or `sizes_px`."
            )
        if len(numbers) < len(sides):
            image_numbers[partition.name] = numbers
    return image_numbers
