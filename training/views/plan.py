"""Images of each step with their sizes and windows, on each rank: a pure function of recipe and step number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import round_to_step
from modeling_radio.core.seeds import make_generator
from modeling_radio.training.data.image_table import Images
from modeling_radio.training.recipe import PartitionRecipe, Recipe, RecipeError


class Grid(NamedTuple):
    """Rows and columns of patches."""

    rows: int
    cols: int

    @property
    def num_tokens(self) -> int:
        """Patches of the whole grid."""
        return self.rows * self.cols


class Shape(NamedTuple):
    """Size of an image.

    Attributes:
        grid: The student's patches.
        window: With cached features, the patches of the image that are resized to that grid; otherwise the same.
    """

    grid: Grid
    window: Grid


@dataclass(frozen=True)
class Batch:
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
        """Neighbors of one shape: the shape, and their slice of the batch."""
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
        image_numbers: By name of the partition the numbers of the images that it sees; without an entry all.

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
        image_numbers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.num_images, self.rank, self.num_ranks = recipe, num_images, rank, num_ranks
        self.patch_size = patch_size
        self._image_numbers = image_numbers or {}
        self._ranks = divide_ranks(recipe.partitions, num_ranks)
        for partition in recipe.partitions:
            self._check_room(partition)
        self._shapes = {partition.name: plan_shapes(recipe, partition, patch_size) for partition in recipe.partitions}
        self._epochs: dict[str, tuple[int, Tensor]] = {}

    def check_equal_passes(self) -> None:
        """Refuse ranks with different numbers of forward passes per step.

        With FSDP all ranks gather the weights together, in every pass: a rank with fewer passes would leave the others
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
        return sum(shapes.images_per_step for shapes in self._shapes.values())

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
        if partition.batch_size is not None:
            if partition.batch_size < num_parts:
                raise RecipeError(
                    f"{where}.batch_size` must be at least {num_parts}, an image for each of {parts}, got "
                    f"{partition.batch_size}."
                )
            return
        assert partition.token_budget is not None
        largest = max(most_tokens(self.recipe, size, self.patch_size) for size in size_shares(partition))
        if partition.token_budget < num_parts * largest:
            raise RecipeError(
                f"{where}.token_budget` must be at least {num_parts * largest}, an image of up to {largest} tokens for "
                f"each of {parts}, got {partition.token_budget}."
            )

    def _parts(self, partition: PartitionRecipe, step: int) -> Iterator[Batch]:
        name = partition.name
        first, shapes, size_px = self._shapes[name].step(step)
        grids = [shape.grid for shape in shapes]
        indices = [self._image_at(name, first + row) for row in range(len(shapes))]
        vitdet_window = draw_window(partition, grids, self.recipe.seed, step)
        slot, num_own = self._ranks[name].index(self.rank), partition.accumulation_steps
        parts = share_out([grid.num_tokens for grid in grids], self._num_parts(partition))
        for part in parts[slot * num_own : (slot + 1) * num_own]:
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
                teachers=tuple(partition.teachers or [teacher.name for teacher in self.recipe.teachers]),
                size_px=size_px,
                vitdet_window=vitdet_window,
            )

    def _image_at(self, partition: str, position: int) -> int:
        """Return the number of the image at a position of the partition's sequence of epochs."""
        if self.num_images is None:
            return position
        image_numbers = self._image_numbers.get(partition)
        number = self.num_images if image_numbers is None else len(image_numbers)
        epoch, slot = divmod(position, number)
        if self._epochs.get(partition, (-1, None))[0] != epoch:
            generator = make_generator(self.recipe.seed, "epoch", partition, epoch)
            order = torch.randperm(number, generator=generator)
            self._epochs[partition] = (epoch, order if image_numbers is None else image_numbers[order])
        return int(self._epochs[partition][1][slot])


def share_out(tokens: Sequence[int], num_parts: int) -> list[list[int]]:
    """Divide the images of a step into parts that take about the same time and memory.

    Images of one size are divided in order, into parts that are equal up to one image. Images of several sizes go, the
    largest first, to the part with the fewest tokens so far.

    Args:
        tokens: Number of tokens of each image.
        num_parts: At most as many as there are images.

    Returns:
        For each part the indices of its images.
    """
    if len(set(tokens)) == 1:
        edges = [len(tokens) * part // num_parts for part in range(num_parts + 1)]
        return [list(range(start, stop)) for start, stop in pairwise(edges)]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    emptiest_first = [(0, part) for part in range(num_parts)]
    for row in sorted(range(len(tokens)), key=lambda row: (-tokens[row], row)):
        filled, part = heappop(emptiest_first)
        parts[part].append(row)
        heappush(emptiest_first, (filled + tokens[row], part))
    return parts


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
    shapes: tuple[Shape, ...]
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


def _shapes(grids: Tensor) -> tuple[Shape, ...]:
    return tuple(Shape(Grid(rows, cols), Grid(*window)) for rows, cols, *window in grids.tolist())


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
        return f"None is for {size_px} px, a single token: take out that size."
    largest = max(window for window in range(1, patches) if partition.vitdet_ragged or patches % window == 0)
    hint = "" if partition.vitdet_ragged else " (with `vitdet_ragged: true` any smaller one would do)"
    return f"The largest for {size_px} px, {patches} tokens a side, is {largest}{hint}."
