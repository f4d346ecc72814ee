"""Which images a step sees, at which resolution, on which rank: a pure function of the recipe and the step number."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.recipe import PartitionRecipe, Recipe, RecipeError
from training.resolutions import draw_size
from training.seeds import make_generator


@dataclass(frozen=True)
class Batch:
    """One forward pass of one rank: a part of a partition's images of one step.

    Random numbers for views are drawn for the step's whole batch and cut to this part, so that neither the
    number of ranks nor accumulation changes what an image looks like.

    Attributes:
        seed: The run's seed.
        step: 0-based optimiser step.
        partition: Name of the partition.
        size_px: Side of the student's images.
        window_px: Side of the window that they show of a cached view.
        indices: Which images of the data set, one per row.
        start: Row of the first of them in the step's whole batch of this partition.
        global_size: Rows of that whole batch.
        weight: Factor of this part's mean loss, so that all parts of the partition sum to its mean.
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
    vitdet_window: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def uniform(self, label: str, *shape: int) -> Tensor:
        """Return numbers in [0, 1), `(len(self), *shape)`, for one purpose."""
        generator = make_generator(self.seed, label, self.partition, self.step)
        return torch.rand(self.global_size, *shape, generator=generator)[self._rows]

    def normal(self, label: str, *shape: int) -> Tensor:
        """Return standard normal numbers, `(len(self), *shape)`, for one purpose."""
        generator = make_generator(self.seed, label, self.partition, self.step)
        return torch.randn(self.global_size, *shape, generator=generator)[self._rows]

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + len(self))


class BatchPlan:
    """The batches of a run.

    Each partition walks through its own endless sequence of shuffled epochs, without dropping a remainder.

    Args:
        recipe: The recipe.
        num_images: Size of the data set.
        rank: Of this process.
        num_ranks: Of the run.

    Raises:
        RecipeError: If a partition's batch cannot be split over ranks and accumulation.
    """

    def __init__(self, recipe: Recipe, num_images: int, rank: int = 0, num_ranks: int = 1) -> None:
        for partition in recipe.partitions:
            parts = num_ranks * partition.accumulation_steps
            if partition.batch_size % parts:
                raise RecipeError(
                    f"`partitions.{partition.name}.batch_size` {partition.batch_size} must be a multiple of {parts} "
                    f"({num_ranks} ranks x {partition.accumulation_steps} accumulation steps)."
                )
        self.recipe, self.num_images, self.rank, self.num_ranks = recipe, num_images, rank, num_ranks
        self._epochs: dict[str, tuple[int, Tensor]] = {}

    def step(self, step: int) -> list[Batch]:
        """Return this rank's batches of one step: all partitions, all accumulated parts."""
        return [batch for partition in self.recipe.partitions for batch in self._parts(partition, step)]

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps in [start, stop)."""
        for step in range(start, stop):
            yield from self.step(step)

    @property
    def images_per_step(self) -> int:
        """Images of one step, over all ranks."""
        return sum(partition.batch_size for partition in self.recipe.partitions)

    @property
    def batches_per_step(self) -> int:
        """Forward passes of one step on this rank."""
        return sum(partition.accumulation_steps for partition in self.recipe.partitions)

    def _parts(self, partition: PartitionRecipe, step: int) -> Iterator[Batch]:
        seed, name = self.recipe.seed, partition.name
        size_px = draw_size(partition.sizes_px, partition.probabilities, seed, "size", name, step)
        windows = partition.windows_px or [size_px]
        window_px = draw_size(windows, None, seed, "window", name, step)
        vitdet_window = self._draw_vitdet_window(partition, step)
        part_size = partition.batch_size // (self.num_ranks * partition.accumulation_steps)
        for part in range(partition.accumulation_steps):
            start = (self.rank * partition.accumulation_steps + part) * part_size
            first = step * partition.batch_size + start
            yield Batch(
                seed=seed,
                step=step,
                partition=name,
                size_px=size_px,
                window_px=window_px,
                indices=tuple(self._image_at(name, position) for position in range(first, first + part_size)),
                start=start,
                global_size=partition.batch_size,
                weight=1 / partition.accumulation_steps,
                vitdet_window=vitdet_window,
            )

    def _draw_vitdet_window(self, partition: PartitionRecipe, step: int) -> int | None:
        """Return the attention window of a step, the same on every rank."""
        if partition.vitdet_windows is None:
            return None
        seed, name = self.recipe.seed, partition.name
        if torch.rand((), generator=make_generator(seed, "use_vitdet", name, step)) >= partition.vitdet_probability:
            return None
        return draw_size(partition.vitdet_windows, None, seed, "vitdet", name, step)

    def _image_at(self, partition: str, position: int) -> int:
        """Return the image at a place of the partition's sequence of epochs."""
        epoch, place = divmod(position, self.num_images)
        if self._epochs.get(partition, (-1, None))[0] != epoch:
            generator = make_generator(self.recipe.seed, "epoch", partition, epoch)
            self._epochs[partition] = (epoch, torch.randperm(self.num_images, generator=generator))
        return int(self._epochs[partition][1][place])
