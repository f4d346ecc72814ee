"""Which images a step sees, at which resolution, on which rank: a pure function of the recipe and the step number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.seeds import make_generator
from modeling_radio.resolution_radio import round_to_step
from training.recipe import PartitionRecipe, Recipe, RecipeError
from training.views.resolutions import draw_size
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
        size_px: Side of the student's images.
        window_px: Side of the window that they show of a cached view.
        indices: Which images of the data set, one per row.
        start: Row of the first of `indices` in the step's whole batch of this partition.
        global_size: Rows of that whole batch.
        weight: Factor of this part's mean loss. The sum over a rank's parts, averaged over ranks as DDP and FSDP
            average gradients, is then the sum of the partitions' means times their weights, wherever and in whatever
            parts they ran.
        teachers: Names of the teachers that see these images.
        vitdet_window: Side in tokens of the student's attention windows; None for global attention.
    """

    seed: int
    step: int
    partition: str
    size_px: int
    window_px: int
    indices: tuple[int, ...]
    start: int
    global_size: int
    weight: float
    teachers: tuple[str, ...]
    vitdet_window: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def uniform(self, label: str, *shape: int) -> Tensor:
        """Return numbers in [0, 1), `(len(self), *shape)`; each label has random numbers of its own."""
        generator = make_generator(self.seed, label, self.partition, self.step)
        return torch.rand(self.global_size, *shape, generator=generator)[self._rows]

    def normal(self, label: str, *shape: int, is_whole: bool = False) -> Tensor:
        """Return standard normal numbers, `(len(self), *shape)`; each label has random numbers of its own.

        `is_whole` returns those of the step's whole batch, `(global_size, *shape)`.
        """
        generator = make_generator(self.seed, label, self.partition, self.step)
        numbers = torch.randn(self.global_size, *shape, generator=generator)
        return numbers if is_whole else numbers[self._rows]

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + len(self))


class BatchPlan:
    """The batches of a run.

    Each partition walks through its own endless sequence of shuffled epochs, without dropping a remainder.

    Args:
        recipe: The recipe.
        num_images: Size of the data set; None for streams, whose images come in order: `Batch.indices` counts them.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        patch_size: The student's patch in pixels, which decides the windows that a resolution can have.

    Raises:
        RecipeError: If the ranks cannot be shared as the partitions say, or a batch is too small for its parts.
    """

    def __init__(
        self, recipe: Recipe, num_images: int | None, rank: int = 0, num_ranks: int = 1, *, patch_size: int
    ) -> None:
        self._ranks = divide_ranks(recipe.partitions, num_ranks)
        for partition in recipe.partitions:
            num_parts = self._num_parts(partition)
            if partition.batch_size < num_parts:
                raise RecipeError(
                    f"`partitions.{partition.name}.batch_size` must be at least {num_parts}, an image for each of "
                    f"{len(self._ranks[partition.name])} ranks x {partition.accumulation_steps} accumulation steps, "
                    f"got {partition.batch_size}."
                )
        self.recipe, self.num_images, self.rank, self.num_ranks = recipe, num_images, rank, num_ranks
        self.patch_size = patch_size
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
        """Number of images of one step, over all ranks."""
        return sum(partition.batch_size for partition in self.recipe.partitions)

    @property
    def batches_per_step(self) -> int:
        """Number of forward passes of one step on this rank."""
        return self._passes_of(self.rank)

    def _passes_of(self, rank: int) -> int:
        return sum(p.accumulation_steps for p in self.recipe.partitions if rank in self._ranks[p.name])

    def _num_parts(self, partition: PartitionRecipe) -> int:
        return len(self._ranks[partition.name]) * partition.accumulation_steps

    def _parts(self, partition: PartitionRecipe, step: int) -> Iterator[Batch]:
        seed, name = self.recipe.seed, partition.name
        size_px = draw_size(partition.sizes_px, partition.probabilities, seed, "size", name, step)
        windows = partition.windows_px or [size_px]
        window_px = draw_size(windows, None, seed, "window", name, step)
        vitdet_window = draw_window(partition, size_px, self.patch_size, seed, step)
        num_parts, place = self._num_parts(partition), self._ranks[name].index(self.rank)
        for part in range(place * partition.accumulation_steps, (place + 1) * partition.accumulation_steps):
            start, stop = (partition.batch_size * edge // num_parts for edge in (part, part + 1))
            first = step * partition.batch_size
            yield Batch(
                seed=seed,
                step=step,
                partition=name,
                size_px=size_px,
                window_px=window_px,
                indices=tuple(self._image_at(name, first + row) for row in range(start, stop)),
                start=start,
                global_size=partition.batch_size,
                weight=partition.weight * self.num_ranks * (stop - start) / partition.batch_size,
                teachers=tuple(self._all_teachers if partition.teachers is None else partition.teachers),
                vitdet_window=vitdet_window,
            )

    def _image_at(self, partition: str, position: int) -> int:
        """Return which image stands at a position of the partition's sequence of epochs."""
        if self.num_images is None:
            return position
        epoch, place = divmod(position, self.num_images)
        if self._epochs.get(partition, (-1, None))[0] != epoch:
            generator = make_generator(self.recipe.seed, "epoch", partition, epoch)
            self._epochs[partition] = (epoch, torch.randperm(self.num_images, generator=generator))
        return int(self._epochs[partition][1][place])


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
