"""Which images a step sees, at which resolution, on which rank: a pure function of the recipe and the step number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby, pairwise

import torch
from torch import Tensor

from foundation.seeds import make_generator
from modeling_radio.checks_radio import round_to_step
from training.recipe import PartitionRecipe, Recipe, RecipeError
from training.views.shapes import Shape, most_tokens, plan_shapes
from training.views.windows import draw_window


@dataclass(frozen=True)
class Batch:
    """One forward pass of one rank: a part of a partition's images of one step.

    Random numbers for views are drawn for the step's whole batch and cut to this part, so that neither the
    number of ranks nor accumulation changes what an image looks like.

    Attributes:
        seed: The run's seed.
        step: 0-based optimizer step.
        partition: Name of the partition.
        shapes: How large each image is; images of one shape are neighbors.
        indices: Which images of the data set, one per row.
        rows: Their places in the step's whole batch of this partition.
        num_images: How many images that whole batch has.
        weight: Factor of this part's mean loss. The sum over a rank's parts, averaged over ranks as DDP and FSDP
            average gradients, is then the sum of the partitions' means times their weights, wherever and in whatever
            parts they ran.
        teachers: Names of the teachers that see these images.
        size_px: The resolution that the step drew; None if each image has drawn its own.
        vitdet_window: Side in tokens of the student's attention windows; None for global attention.
    """

    seed: int
    step: int
    partition: str
    shapes: tuple[Shape, ...]
    indices: tuple[int, ...]
    rows: tuple[int, ...]
    num_images: int
    weight: float
    teachers: tuple[str, ...]
    size_px: int | None = None
    vitdet_window: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def groups(self) -> list[tuple[Shape, slice]]:
        """Neighbors of one shape: it, and which of the batch they are."""
        groups, start = [], 0
        for shape, images in groupby(self.shapes):
            stop = start + len(list(images))
            groups.append((shape, slice(start, stop)))
            start = stop
        return groups

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

    Each partition walks through its own endless sequence of shuffled epochs, without dropping a remainder.

    Args:
        recipe: The recipe.
        num_images: Size of the data set; None for streams, whose images come in order: `Batch.indices` counts them.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        patch_size: The student's patch in pixels, which decides the windows that a resolution can have.
        admitted: By name of the partition the numbers of the images that it sees; all where it is not named.

    Raises:
        RecipeError: If the ranks cannot be shared as the partitions say, or a batch is too small for its parts.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_images: int | None,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        patch_size: int,
        admitted: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.num_images, self.rank, self.num_ranks = recipe, num_images, rank, num_ranks
        self.patch_size = patch_size
        self._admitted = admitted or {}
        self._ranks = divide_ranks(recipe.partitions, num_ranks)
        for partition in recipe.partitions:
            self._check_room(partition)
        self._shapes = {partition.name: plan_shapes(recipe, partition, patch_size) for partition in recipe.partitions}
        self._all_teachers = [teacher.name for teacher in recipe.teachers]
        self._epochs: dict[str, tuple[int, Tensor]] = {}

    def check_equal_passes(self) -> None:
        """Refuse ranks with different numbers of forward passes per step.

        With FSDP all ranks gather the weights together, in every pass: one that has fewer would leave the others
        waiting.

        Raises:
            RecipeError: If the numbers differ.
        """
        passes = [self._passes_of(rank) for rank in range(self.num_ranks)]
        if min(passes) != max(passes):
            steps = {partition.name: partition.accumulation_steps for partition in self.recipe.partitions}
            raise RecipeError(
                "`partitions` must have equally many forward passes per step on every rank with FSDP, got "
                f"{min(passes)} to {max(passes)}. Give partitions with a `rank_share` equal "
                f"`accumulation_steps` (now {steps})."
            )

    def step(self, step: int) -> list[Batch]:
        """Return this rank's batches of one step: all of its partitions, all accumulated parts."""
        partitions = [partition for partition in self.recipe.partitions if self.rank in self._ranks[partition.name]]
        return [batch for partition in partitions for batch in self._parts(partition, step)]

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps in [start, stop)."""
        for step in range(start, stop):
            yield from self.step(step)

    @property
    def images_per_step(self) -> int:
        """Number of images of one step, over all ranks; with a token budget their mean, rounded."""
        return round(sum(shapes.images_per_step for shapes in self._shapes.values()))

    @property
    def batches_per_step(self) -> int:
        """Number of forward passes of one step on this rank."""
        return self._passes_of(self.rank)

    def _passes_of(self, rank: int) -> int:
        return sum(p.accumulation_steps for p in self.recipe.partitions if rank in self._ranks[p.name])

    def _num_parts(self, partition: PartitionRecipe) -> int:
        return len(self._ranks[partition.name]) * partition.accumulation_steps

    def _check_room(self, partition: PartitionRecipe) -> None:
        """Refuse a batch that has not an image for each of its parts."""
        num_parts, where = self._num_parts(partition), f"`partitions.{partition.name}"
        parts = f"{len(self._ranks[partition.name])} ranks x {partition.accumulation_steps} accumulation steps"
        if partition.token_budget is None:
            assert partition.batch_size is not None
            if partition.batch_size < num_parts:
                raise RecipeError(
                    f"{where}.batch_size` must be at least {num_parts}, an image for each of {parts}, got "
                    f"{partition.batch_size}."
                )
            return
        chances = partition.probabilities or [1.0] * len(partition.sizes_px)
        drawn = [size for size, chance in zip(partition.sizes_px, chances, strict=True) if chance > 0]
        largest = max(most_tokens(self.recipe, size, self.patch_size) for size in drawn)
        if partition.token_budget < num_parts * largest:
            raise RecipeError(
                f"{where}.token_budget` must be at least {num_parts * largest}, an image of up to {largest} tokens for "
                f"each of {parts}, got {partition.token_budget}."
            )

    def _parts(self, partition: PartitionRecipe, step: int) -> Iterator[Batch]:
        name = partition.name
        first, shapes, size_px = self._shapes[name].step(step)
        tokens = tuple(shape.grid.num_tokens for shape in shapes)
        indices = [self._image_at(name, first + row) for row in range(len(shapes))]
        grids = [shape.grid for shape in shapes]
        vitdet_window = draw_window(partition, grids, self.recipe.seed, step)
        place, num_own = self._ranks[name].index(self.rank), partition.accumulation_steps
        parts = share_out(tokens, self._num_parts(partition))
        for part in parts[place * num_own : (place + 1) * num_own]:
            rows = sorted(part, key=lambda row: (shapes[row], row))
            yield Batch(
                seed=self.recipe.seed,
                step=step,
                partition=name,
                shapes=tuple(shapes[row] for row in rows),
                indices=tuple(indices[row] for row in rows),
                rows=tuple(rows),
                num_images=len(shapes),
                weight=partition.weight * self.num_ranks * len(rows) / len(shapes),
                teachers=tuple(self._all_teachers if partition.teachers is None else partition.teachers),
                size_px=size_px,
                vitdet_window=vitdet_window,
            )

    def _image_at(self, partition: str, position: int) -> int:
        """Return which image stands at a position of the partition's sequence of epochs."""
        if self.num_images is None:
            return position
        admitted = self._admitted.get(partition)
        number = self.num_images if admitted is None else len(admitted)
        epoch, place = divmod(position, number)
        if self._epochs.get(partition, (-1, None))[0] != epoch:
            generator = make_generator(self.recipe.seed, "epoch", partition, epoch)
            order = torch.randperm(number, generator=generator)
            self._epochs[partition] = (epoch, order if admitted is None else admitted[order])
        return int(self._epochs[partition][1][place])


def share_out(tokens: Sequence[int], num_parts: int) -> list[list[int]]:
    """Divide the images of a step into parts that take about the same time and memory.

    Images of one size are divided in order, into parts that are equal up to one image; of images of several sizes each
    goes, the largest first, where there are the fewest tokens so far.

    Args:
        tokens: Of each image.
        num_parts: At most as many as there are images.

    Returns:
        For each part the places of its images.
    """
    if len(set(tokens)) == 1:
        edges = [len(tokens) * part // num_parts for part in range(num_parts + 1)]
        return [list(range(start, stop)) for start, stop in pairwise(edges)]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    fullest_last = [(0, part) for part in range(num_parts)]
    for row in sorted(range(len(tokens)), key=lambda row: (-tokens[row], row)):
        filled, part = heappop(fullest_last)
        parts[part].append(row)
        heappush(fullest_last, (filled + tokens[row], part))
    return parts


def teachers_of_rank(recipe: Recipe, rank: int, num_ranks: int) -> list[str]:
    """Return the names of the teachers that a rank runs: those of its partitions, or all to fill a feature cache."""
    names = [entry.name for entry in recipe.teachers]
    if recipe.views.teachers == "cached":
        return names
    ranks = divide_ranks(recipe.partitions, num_ranks)
    own = [partition for partition in recipe.partitions if rank in ranks[partition.name]]
    return [name for name in names if any(name in (partition.teachers or names) for partition in own)]


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
