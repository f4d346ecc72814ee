"""Images of each step with their sizes and windows, on each rank: a pure function of recipe and step number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import round_to_step
from modeling_radio.core.seeds import make_generator
from modeling_radio.training.data.image_table import Images
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError
from modeling_radio.training.recipes.sections import AUTO


Operations = Mapping[str, Mapping[int, float]]
"""By partition, by an image's number of patches, what it takes: see `BatchPlan`."""


DEALING = "by shape"
"""Way in which images of packs are dealt to ranks and passes; checkpoints have it, since a run keeps to one way."""
FEW_IMAGES = 4
"""Images of a rank in the mean below which its share of a pack is a run of shapes, which the last pack evens out. Our
choice: with more, equal shares have few shapes, too, and passes need equally much memory."""
CUT_BISECTIONS = 30
"""Halvings of the bounds of a run's cost. Our choice: what is left of them is less than a token."""


class Grid(NamedTuple):
    """Rows and columns of patches."""

    rows: int
    cols: int

    @property
    def num_tokens(self) -> int:
        """Patches of the whole grid."""
        return self.rows * self.cols


class ImageShape(NamedTuple):
    """Size of an image.

    Attributes:
        grid: The student's patches.
        window: With cached features, the patches of the image that are resized to that grid; otherwise the same.
    """

    grid: Grid
    window: Grid


def _size_of(shape: ImageShape) -> tuple[int, ImageShape]:
    return shape.grid.num_tokens, shape


class SeenImages(NamedTuple):
    """Images that a teacher sees, where each image is shown to some of the teachers.

    Attributes:
        places: Their places in a batch.
        share: Share of the images of the step's whole batch that the teacher sees, on all ranks.
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


def deal_teachers(
    partition: PartitionRecipe, teachers: Sequence[str], shapes: Sequence[ImageShape], seed: int, step: int
) -> dict[str, set[int]] | None:
    """Return by teacher the rows of the images of a step that it sees; None if each sees all.

    Images take turns in the order of their shapes, beginning at a teacher that the step draws. So numbers of images
    differ by at most one between teachers, of each shape as well, whatever the ranks and parts.
    """
    number = partition.teachers_per_image
    if number is None:
        return None
    generator = make_generator(seed, "teachers_per_image", partition.name, step)
    turn = int(torch.randint(len(teachers), (), generator=generator))
    seen: dict[str, set[int]] = {name: set() for name in teachers}
    for row in sorted(range(len(shapes)), key=lambda row: (shapes[row], row)):
        for place in range(turn, turn + number):
            seen[teachers[place % len(teachers)]].add(row)
        turn += number
    return seen


def _seen_in(
    chosen: Sequence[int], dealt: Mapping[str, Collection[int]] | None, num_images: int
) -> dict[str, SeenImages] | None:
    """Return by teacher its images among the chosen rows of a step."""
    if dealt is None:
        return None
    return {
        name: SeenImages(tuple(place for place, row in enumerate(chosen) if row in rows), len(rows) / num_images)
        for name, rows in dealt.items()
    }


def parts_of_rank(partition: PartitionRecipe, num_ranks: int, patch_size: int) -> int:
    """Return in how many parts each of a partition's ranks computes its share, at most one for each image in the mean.

    Args:
        partition: The partition.
        num_ranks: Number of its ranks.
        patch_size: The student's patch in pixels.
    """
    steps = partition.accumulation_steps
    assert steps != AUTO, "a number is chosen before images are dealt"
    return max(1, min(steps, images_per_step(partition, patch_size) // num_ranks))


def cut_evenly(number: int, num_parts: int) -> list[range]:
    """Return the indices of each part of a sequence that is cut into parts of equal length, up to one."""
    edges = [number * part // num_parts for part in range(num_parts + 1)]
    return [range(*edge) for edge in pairwise(edges)]


def cut_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape], num_parts: int) -> list[list[int]]:
    """Cut images in the order of their shapes, the dearest first, into runs; the dearest run is as cheap as possible.

    Costs of the parts differ by up to an image of each part, which later images even out.

    Args:
        costs: Cost of each image, equal for equal shapes.
        shapes: Its shape.
        num_parts: Number of parts, of which the last ones may be empty.

    Returns:
        For each part the indices of its images.
    """
    order = [row for rows in _rows_by_shape(costs, shapes) for row in rows]

    def runs(limit: float) -> list[list[int]]:
        found, cost = [[order[0]]], costs[order[0]]
        for row in order[1:]:
            cost += costs[row]
            if cost > limit:
                found.append([])
                cost = costs[row]
            found[-1].append(row)
        return found

    low, high = max(costs), sum(costs)
    for _ in range(CUT_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(runs(middle)) <= num_parts else (middle, high)
    found = runs(high)
    return [*found, *([] for _ in range(num_parts - len(found)))]


def share_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape], loads: Sequence[float]) -> list[list[int]]:
    """Divide images into parts that cost about the same, and of few shapes.

    One part after the other, that with the most room first, is filled up to the cost of all parts in the mean: with as
    many images as fit of the dearest shape that is left, then of the dearest one that fits into the rest. Images that
    fit nowhere go one by one to the part that has least.

    Args:
        costs: Cost of each image, in tokens or operations, equal for equal shapes.
        shapes: Its shape.
        loads: Cost that each part has already.

    Returns:
        For each part the indices of its images.
    """
    left, mean = _rows_by_shape(costs, shapes), _water_level(loads, sum(costs))
    parts, filled = [[] for _ in loads], list(loads)
    for part in sorted(range(len(loads)), key=lambda part: (loads[part], part)):
        for rows in left:
            fitting = max(0, int((mean - filled[part]) / costs[rows[0]])) if rows else 0
            parts[part] += rows[:fitting]
            filled[part] += sum(costs[row] for row in rows[:fitting])
            del rows[:fitting]
    emptiest_first = [(load, part) for part, load in enumerate(filled)]
    heapify(emptiest_first)
    for row in (row for rows in left for row in rows):
        load, part = emptiest_first[0]
        parts[part].append(row)
        heapreplace(emptiest_first, (load + costs[row], part))
    return parts


def _rows_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape]) -> list[list[int]]:
    """Return the indices of the images of each shape, those of the dearest shape first."""
    order = sorted(range(len(costs)), key=lambda row: (-costs[row], shapes[row], row))
    return [list(rows) for _, rows in groupby(order, key=lambda row: shapes[row])]


def _water_level(loads: Sequence[float], cost: float) -> float:
    """Return up to which cost all parts below it are filled if they share `cost`."""
    level = 0.0
    for number, load in enumerate(sorted(loads), 1):
        if number > 1 and load >= level:
            break
        cost += load
        level = cost / number
    return level


def divide_ranks(partitions: Sequence[PartitionRecipe], num_ranks: int) -> dict[str, range]:
    """Return the ranks that run each partition.

    Partitions with a `rank_share` divide the ranks among them, in order; the others, and all of them in a single
    process, run on every rank.

    Args:
        partitions: The recipe's partitions.
        num_ranks: Number of ranks.

    Raises:
        RecipeError: If the number of ranks is no multiple of the sum of the shares.
    """
    total = sum(partition.rank_share or 0 for partition in partitions)
    if num_ranks == 1 or total == 0:
        return {partition.name: range(num_ranks) for partition in partitions}
    if num_ranks % total:
        raise RecipeError(
            f"`partitions` with a `rank_share` must have a number of ranks that is 1 or a multiple of {total}, got "
            f"{num_ranks}. Use {round_to_step(num_ranks, total)} ranks, or other shares."
        )
    ranks, start = {}, 0
    for partition in partitions:
        if partition.rank_share is None:
            ranks[partition.name] = range(num_ranks)
        else:
            stop = start + partition.rank_share * num_ranks // total
            ranks[partition.name] = range(start, stop)
            start = stop
    return ranks


def teachers_of_rank(recipe: Recipe, rank: int, num_ranks: int) -> list[str]:
    """Return the names of the teachers that a rank runs: those of its partitions, or all to fill a feature cache."""
    names = [entry.name for entry in recipe.teachers]
    if recipe.views.teachers == "cached":
        return names
    ranks = divide_ranks(recipe.partitions, num_ranks)
    own = [partition for partition in recipe.partitions if rank in ranks[partition.name]]
    return [name for name in names if any(name in (partition.teachers or names) for partition in own)]


def used_px(recipe: Recipe, partition: PartitionRecipe) -> int:
    """Return the resolution at which a partition uses images: its largest, or that of cached views."""
    return recipe.data.image_size_px if recipe.views.teachers == "cached" else max(partition.sizes_px)


def smallest_used_px(recipe: Recipe) -> int:
    """Return the smallest `used_px` of all partitions. No partition uses an image that is too small for it."""
    return min(used_px(recipe, partition) for partition in recipe.partitions)


def large_enough_images(images: Images, recipe: Recipe) -> dict[str, Tensor]:
    """Return the numbers of the images that each partition may see, without the partitions that may see all.

    Args:
        images: The data set.
        recipe: `data.filters.min_side_ratio` says how large an image must be.

    Raises:
        RecipeError: If no image is large enough for a partition.
    """
    ratio, sides = recipe.data.filters.min_side_ratio, images.short_sides()
    if ratio is None or sides is None:
        return {}
    image_numbers = {}
    for partition in recipe.partitions:
        least = ratio * used_px(recipe, partition)
        numbers = (sides >= least).nonzero().flatten()
        if not len(numbers):
            raise RecipeError(
                f"`data.filters.min_side_ratio` must leave an image of at least {least:.0f} px for partition "
                f"{partition.name!r}, got {ratio}: the largest has {int(sides.max())} px. Lower it, or `sizes_px`."
            )
        if len(numbers) < len(sides):
            image_numbers[partition.name] = numbers
    return image_numbers


class StepShapes(NamedTuple):
    """The images of one step of a partition, over all ranks and accumulated parts.

    Attributes:
        first: Position of the first image in the partition's sequence.
        shapes: Size of each image.
        size_px: The resolution that the step drew; None if each image has drawn its own.
    """

    first: int
    shapes: tuple[ImageShape, ...]
    size_px: int | None = None


class UniformShapes:
    """The same number of images at every step, all of one shape, which each step draws.

    Args:
        recipe: The recipe.
        partition: The partition, with a `batch_size`.
        patch_size: The student's patch in pixels.
    """

    def __init__(self, recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
        assert partition.batch_size is not None
        self.recipe, self.partition, self.patch_size = recipe, partition, patch_size
        self.images_per_step = partition.batch_size

    def step(self, step: int) -> StepShapes:
        """Return the images of a step."""
        partition, seed = self.partition, self.recipe.seed
        size_px = draw_size(partition.sizes_px, partition.probabilities, seed, "size", partition.name, step)
        windows = partition.windows_px or [size_px]
        window_px = draw_size(windows, None, seed, "window", partition.name, step)
        number = torch.rand(1, dtype=torch.float64, generator=make_generator(seed, "aspect", partition.name, step))
        sizes = torch.tensor([[size_px, window_px]])
        shapes = _shapes(_grids_of(self.recipe, partition, self.patch_size, sizes, number))
        return StepShapes(step * self.images_per_step, shapes * self.images_per_step, size_px)


class PackedShapes:
    """Images of different sizes, as many at each step as its budget of tokens holds of the mean size.

    Each size has its share of a step's images, up to one image: systematic sampling. So a step is as long as any other,
    and a function of its number alone.

    Args:
        recipe: The recipe.
        partition: The partition, with a `token_budget`.
        patch_size: The student's patch in pixels.

    Attributes:
        images_per_step: Number of images.
    """

    def __init__(self, recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
        self.recipe, self.partition, self.patch_size = recipe, partition, patch_size
        self.images_per_step = images_per_step(partition, patch_size)

    def step(self, step: int) -> StepShapes:
        """Return the images of a step."""
        partition, number = self.partition, self.images_per_step
        generator = make_generator(self.recipe.seed, "shapes", partition.name, step)
        bounds = torch.tensor(list(size_shares(partition).values()), dtype=torch.float64).cumsum(0)
        positions = (torch.arange(number) + torch.rand(1, dtype=torch.float64, generator=generator)) / number
        drawn = torch.searchsorted(bounds, positions, right=True).clamp(max=len(bounds) - 1)
        sizes = torch.tensor(list(size_shares(partition)))[drawn[torch.randperm(number, generator=generator)]]
        windows = sizes
        if partition.windows_px is not None:
            choice = torch.randint(len(partition.windows_px), (number,), generator=generator)
            windows = torch.tensor(partition.windows_px)[choice]
        numbers = torch.rand(number, dtype=torch.float64, generator=generator)
        grids = _grids_of(self.recipe, partition, self.patch_size, torch.stack([sizes, windows], 1), numbers)
        return StepShapes(step * number, _shapes(grids))


def size_shares(partition: PartitionRecipe) -> dict[int, float]:
    """Return the probability of each resolution of a partition that is drawn at all."""
    chances = partition.probabilities or [1.0] * len(partition.sizes_px)
    shares: dict[int, float] = {}
    for size, chance in zip(partition.sizes_px, chances, strict=True):
        if chance > 0:
            shares[size] = shares.get(size, 0.0) + chance / sum(chances)
    return shares


def images_per_step(partition: PartitionRecipe, patch_size: int) -> int:
    """Return the number of images of a step of a partition, with a token budget as many as it holds of the mean size.

    Args:
        partition: The partition.
        patch_size: The student's patch in pixels.
    """
    if partition.batch_size is not None:
        return partition.batch_size
    assert partition.token_budget is not None
    mean_tokens = sum(share * (size // patch_size) ** 2 for size, share in size_shares(partition).items())
    return max(1, int(partition.token_budget / mean_tokens + 1e-9))  # rounding of the shares takes no image


def check_teachers_per_image(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
    """Refuse steps in which a teacher sees no image, where each image is shown to some of the teachers.

    Raises:
        RecipeError: If a step has too few images.
    """
    count, number = partition.teachers_per_image, images_per_step(partition, patch_size)
    if count is not None and number * count < len(partition.teachers or recipe.teachers):
        raise RecipeError(
            f"`partitions.{partition.name}.teachers_per_image` must be null with as few images in a step as {number}, "
            f"of which a teacher may see none, got {count}."
        )


def plan_shapes(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> UniformShapes | PackedShapes:
    """Return the plan of a partition's image sizes."""
    kind = UniformShapes if partition.token_budget is None else PackedShapes
    return kind(recipe, partition, patch_size)


def extreme_grids(recipe: Recipe, partition: PartitionRecipe, size_px: int, patch_size: int) -> list[Grid]:
    """Return the square grid of a resolution and, where images keep their aspect ratio, the narrowest and the widest.

    With windows of cached images, which bound aspect ratios, those of each window.

    Args:
        recipe: Says which aspect ratios there are.
        partition: Its partition.
        size_px: A resolution.
        patch_size: The student's patch in pixels.
    """
    windows = partition.windows_px or [size_px]
    numbers = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(windows))
    sizes = torch.tensor([[size_px, window] for window in windows for _ in range(2)])
    extremes = _shapes(_grids_of(recipe, partition, patch_size, sizes, numbers))
    patches = size_px // patch_size
    return list(dict.fromkeys([Grid(patches, patches), *(shape.grid for shape in extremes)]))


def most_tokens(recipe: Recipe, size_px: int, patch_size: int) -> int:
    """Return the largest number of tokens of an image of a resolution, whatever its aspect ratio."""
    patches = size_px / patch_size
    if recipe.views.is_square:
        return int(patches**2)
    stretches = [bound**0.5 for bound in recipe.views.crop_aspect]
    # Sides are rounded, and at least 1. In between, their product is no larger than at one of the ends.
    return max(int((max(patches / each, 0.5) + 0.5) * (max(patches * each, 0.5) + 0.5)) for each in stretches)


def _grids_of(recipe: Recipe, partition: PartitionRecipe, patch_size: int, sizes_px: Tensor, numbers: Tensor) -> Tensor:
    """Return rows and columns of patches, then those of the window, `(images, 4)`.

    An image that is not square has as many patches as a square one, up to rounding. Cached images are squares, and no
    window is larger than they are.

    Args:
        recipe: The recipe.
        partition: Its partition.
        patch_size: The student's patch in pixels.
        sizes_px: `(images, 2)`: sides of the square image and of its window, pixels.
        numbers: `(images,)` uniform, which decide aspect ratios.
    """
    stretch = torch.ones_like(numbers)
    if not recipe.views.is_square:
        (low, high), steps = recipe.views.crop_aspect, recipe.views.aspect_steps
        if steps is not None:
            numbers = ((numbers * steps).floor().clamp(max=steps - 1) + 0.5) / steps
        stretch = (low * (high / low) ** numbers).sqrt()
    grids, windows = (_rounded(sizes / patch_size, stretch) for sizes in sizes_px.double().T)
    if recipe.views.teachers == "cached":
        windows = windows.clamp(max=recipe.data.image_size_px // patch_size)
        if partition.windows_px is None:
            grids = windows
        elif not recipe.views.is_square:  # as wide as what is resized to it
            grids = _rounded(sizes_px[:, 0].double() / patch_size, (windows[:, 1] / windows[:, 0]).double().sqrt())
    return torch.cat([grids, windows], dim=1)


def _rounded(patches: Tensor, stretch: Tensor) -> Tensor:
    """Return whole rows and columns, `(images, 2)`, of squares with sides of `patches` that are stretched sideways."""
    return torch.stack([patches / stretch, patches * stretch], dim=1).round().clamp(min=1).long()


def _shapes(grids: Tensor) -> tuple[ImageShape, ...]:
    return tuple(ImageShape(Grid(rows, cols), Grid(*window)) for rows, cols, *window in grids.tolist())


def draw_size(sizes: Sequence[int], probabilities: Sequence[float] | None, seed: int, *labels: int | str) -> int:
    """Draw one of the sizes.

    Args:
        sizes: Candidates in pixels.
        probabilities: Their weights, not all zero; None for equal ones.
        seed: The run's seed.
        labels: Labels of the random numbers, for example `("size", partition, step)`.

    Returns:
        The drawn size in pixels.
    """
    weights = torch.tensor([1.0] * len(sizes) if probabilities is None else probabilities, dtype=torch.float32)
    index = torch.multinomial(weights, 1, generator=make_generator(seed, *labels))
    return sizes[int(index)]


def fitting_windows(partition: PartitionRecipe, grid: Grid) -> list[int]:
    """Return the partition's windows that cut a grid into several each way, of equal size unless it says so.

    Args:
        partition: Names the windows, and whether they may be ragged.
        grid: The student's patches.

    Returns:
        Sides in tokens, in the recipe's order.
    """
    windows = [window for window in partition.vitdet_windows or [] if window < min(grid)]
    return [window for window in windows if partition.vitdet_ragged or all(side % window == 0 for side in grid)]


def draw_window(partition: PartitionRecipe, grids: Sequence[Grid], seed: int, step: int) -> int | None:
    """Draw the window of a step from the seed and the step, so it is the same on every rank and after a restart.

    Args:
        partition: Names the windows and the share of its steps that have one.
        grids: The student's patches of each image of the step. Where they differ, windows must fit the middle one in
            order of size: smaller images then are windows of their own.
        seed: The run's seed.
        step: 0-based optimizer step.

    Returns:
        Its side in tokens, or None for global attention.
    """
    if partition.vitdet_windows is None:
        return None
    generator = make_generator(seed, "use_vitdet", partition.name, step)
    if torch.rand((), generator=generator) >= partition.vitdet_probability:
        return None
    middle = sorted(grids, key=lambda grid: (grid.num_tokens, grid))[len(grids) // 2]
    windows = fitting_windows(partition, middle)
    return draw_size(windows, None, seed, "vitdet", partition.name, step) if windows else None


def check_windows(recipe: Recipe, partition: PartitionRecipe, config: RadioConfig) -> None:
    """Refuse windows that could have no effect.

    Args:
        recipe: The recipe.
        partition: The partition.
        config: The student's configuration.

    Raises:
        RecipeError: If every block of the student attends globally, a resolution has no window that fits it, or a
            window fits no resolution; or if windows must divide grids that differ within a step.
    """
    windows = partition.vitdet_windows
    if windows is None:
        return
    path = f"partitions.{partition.name}.vitdet_windows"
    if not config.has_windowed_blocks:
        raise RecipeError(
            f"`{path}` must be null where all blocks attend globally, got {windows}. "
            f"{more_windowed(config, 'student', 'student.config')}"
        )
    if not partition.vitdet_ragged and (partition.token_budget is not None or not recipe.views.is_square):
        raise RecipeError(
            f"`partitions.{partition.name}.vitdet_ragged` must be true with `vitdet_windows` for images of several "
            "shapes (`token_budget`, or `views.is_square: false`), got false. No window divides them all."
        )
    which = "" if partition.vitdet_ragged else " and a divisor of it"
    grids = {size: extreme_grids(recipe, partition, size, config.patch_size) for size in partition.sizes_px}
    fitting: dict[int, set[int]] = {}
    for size, own in grids.items():
        fitting[size] = set.intersection(*(set(fitting_windows(partition, grid)) for grid in own))
        if not fitting[size]:
            advice = _largest(partition, size, min(min(grid) for grid in own))
            raise RecipeError(
                f"`{path}` must have a window smaller than each size's grid{which}, got {windows}. {advice}"
            )
    unused = [window for window in windows if not any(window in found for found in fitting.values())]
    if unused:
        raise RecipeError(
            f"`{path}` must be windows smaller than the grid of some size{which}, got {unused} with grids of "
            f"{[min(own[0]) for own in grids.values()]} tokens a side. Take them out."
        )


def more_windowed(config: RadioConfig, owner: str, section: str) -> str:
    """Return advice for a network whose blocks all attend globally: how to make some windowed.

    Args:
        config: The network's configuration.
        owner: Name of the network, as in "student".
        section: Name of the settings with its fields, as in "student.config".
    """
    depth = config.num_hidden_layers
    if depth == 1:
        return f"The {owner}'s only block is its last, which always does."
    if config.vitdet_num_windowed is not None:
        return f"Set `{section}.vitdet_num_windowed` to at least 1."
    return (
        f"Set `{section}.vitdet_num_global` to at most {depth // 2} (now {config.vitdet_num_global}, of {depth} "
        "blocks)."
    )


def _largest(partition: PartitionRecipe, size_px: int, patches: int) -> str:
    """Return the largest window that fits a resolution, in words."""
    if patches < 2:
        return f"No window fits {size_px} px, a single token: take out that size."
    largest = max(window for window in range(1, patches) if partition.vitdet_ragged or patches % window == 0)
    hint = "" if partition.vitdet_ragged else " (with `vitdet_ragged: true` any smaller one would do)"
    return f"The largest for {size_px} px, {patches} tokens a side, is {largest}{hint}."
