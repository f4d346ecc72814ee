"""How large each image of a step is to the student: one shape for all, or one of its own for each under a budget."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foundation.seeds import make_generator
from training.recipe import PartitionRecipe, Recipe


IMAGES_PER_DRAW = 4096
"""Shapes of a packed partition that are drawn at once. Our choice; another number would draw other shapes."""


class Grid(NamedTuple):
    """Rows and columns of patches or cells."""

    rows: int
    cols: int

    @property
    def num_tokens(self) -> int:
        """Patches of the whole grid."""
        return self.rows * self.cols


class Shape(NamedTuple):
    """How large an image is.

    Attributes:
        grid: The student's patches.
        window: With cached features, the cells of the image that are resized to that grid; otherwise the same.
    """

    grid: Grid
    window: Grid


class StepShapes(NamedTuple):
    """The images of one step of a partition, over all ranks and accumulated parts.

    Attributes:
        first: Place of the first image in the partition's sequence.
        shapes: How large each is.
        size_px: The resolution that the step drew; None if each image has drawn its own.
    """

    first: int
    shapes: tuple[Shape, ...]
    size_px: int | None = None


class ShapePlan(Protocol):
    """Says which images of a partition's sequence a step takes, and how large they are."""

    images_per_step: float
    """Their mean number."""

    def step(self, step: int) -> StepShapes:
        """Return the images of a step, a pure function of its number."""


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
        self.batch_size = partition.batch_size
        self.images_per_step = float(self.batch_size)

    def step(self, step: int) -> StepShapes:
        partition, seed = self.partition, self.recipe.seed
        size_px = draw_size(partition.sizes_px, partition.probabilities, seed, "size", partition.name, step)
        windows = partition.windows_px or [size_px]
        window_px = draw_size(windows, None, seed, "window", partition.name, step)
        number = torch.rand(1, dtype=torch.float64, generator=make_generator(seed, "aspect", partition.name, step))
        sizes = torch.tensor([[size_px, window_px]])
        (shape,) = _shapes(_grids_of(self.recipe, partition, self.patch_size, sizes, number))
        return StepShapes(step * self.batch_size, (shape,) * self.batch_size, size_px)


class PackedShapes:
    """Images of sizes of their own, as many at each step as fit into its budget of tokens.

    Shapes belong to the places of the partition's sequence of images, and steps cut the sequence where the next image
    would no longer fit, so that every image is trained on, and each step is a function of its number alone.

    Args:
        recipe: The recipe.
        partition: The partition, with a `token_budget`.
        patch_size: The student's patch in pixels.
    """

    def __init__(self, recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
        assert partition.token_budget is not None
        self.recipe, self.partition, self.patch_size = recipe, partition, patch_size
        self.token_budget = partition.token_budget
        self._starts = [0]
        self._drawn: dict[int, Tensor] = {}
        self.images_per_step = self.token_budget / _num_tokens(self._draw(0)).double().mean().item()

    def step(self, step: int) -> StepShapes:
        while len(self._starts) < step + 2:
            self._cut_steps()
        first, stop = self._starts[step], self._starts[step + 1]
        return StepShapes(first, _shapes(self._draws_from(first)[: stop - first]))

    def _cut_steps(self) -> None:
        """Find where the next steps end, as far as the images are drawn that the first of them needs."""
        first = self._starts[-1]
        ends = _num_tokens(self._draws_from(first)).cumsum(0).tolist()
        before, place = 0, 0
        while before + self.token_budget < ends[-1]:
            place = bisect_right(ends, before + self.token_budget)
            before = ends[place - 1]
            self._starts.append(first + place)

    def _draws_from(self, first: int) -> Tensor:
        """Return the shapes of the images from a place on, more than fit into a step."""
        draw, offset = divmod(first, IMAGES_PER_DRAW)
        drawn = self._draw(draw)[offset:]
        while _num_tokens(drawn).sum() <= self.token_budget:
            draw += 1
            drawn = torch.cat([drawn, self._draw(draw)])
        return drawn

    def _draw(self, draw: int) -> Tensor:
        """Return the shapes of `IMAGES_PER_DRAW` neighboring images, as of `_grids_of`; the last few are kept."""
        if draw not in self._drawn:
            partition = self.partition
            generator = make_generator(self.recipe.seed, "shapes", partition.name, draw)
            weights = torch.tensor(partition.probabilities or [1.0] * len(partition.sizes_px), dtype=torch.float64)
            drawn = torch.multinomial(weights, IMAGES_PER_DRAW, replacement=True, generator=generator)
            sizes = torch.tensor(partition.sizes_px)[drawn]
            windows = sizes
            if partition.windows_px is not None:
                choice = torch.randint(len(partition.windows_px), (IMAGES_PER_DRAW,), generator=generator)
                windows = torch.tensor(partition.windows_px)[choice]
            numbers = torch.rand(IMAGES_PER_DRAW, dtype=torch.float64, generator=generator)
            grids = _grids_of(self.recipe, partition, self.patch_size, torch.stack([sizes, windows], 1), numbers)
            self._drawn = {**dict(list(self._drawn.items())[-2:]), draw: grids}
        return self._drawn[draw]


def plan_shapes(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> ShapePlan:
    """Return which images the steps of a partition take, and how large they are."""
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
    cells = size_px // patch_size
    return list(dict.fromkeys([Grid(cells, cells), *(shape.grid for shape in extremes)]))


def most_tokens(recipe: Recipe, size_px: int, patch_size: int) -> int:
    """Return what an image of a resolution has at most, whatever its aspect ratio."""
    cells = size_px / patch_size
    if recipe.views.is_square:
        return int(cells**2)
    stretches = [bound**0.5 for bound in recipe.views.crop_aspect]
    # Sides are rounded, and at least 1. In between, their product is no larger than at one of the ends.
    return max(int((max(cells / each, 0.5) + 0.5) * (max(cells * each, 0.5) + 0.5)) for each in stretches)


def _grids_of(recipe: Recipe, partition: PartitionRecipe, patch_size: int, sizes_px: Tensor, numbers: Tensor) -> Tensor:
    """Return rows and columns of patches, then those of the window, `(images, 4)`.

    An image that is not square has as many patches as a square one, up to rounding. Cached images are squares: there a
    window is at most as large as they are.

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


def _rounded(cells: Tensor, stretch: Tensor) -> Tensor:
    """Return whole rows and columns, `(images, 2)`, of squares of so many cells that are stretched to the side."""
    return torch.stack([cells / stretch, cells * stretch], dim=1).round().clamp(min=1).long()


def _num_tokens(grids: Tensor) -> Tensor:
    return grids[:, :2].prod(1)


def _shapes(grids: Tensor) -> tuple[Shape, ...]:
    return tuple(Shape(Grid(rows, cols), Grid(*window)) for rows, cols, *window in grids.tolist())


def draw_size(sizes: Sequence[int], probabilities: Sequence[float] | None, seed: int, *labels: int | str) -> int:
    """Draw one of the sizes.

    Args:
        sizes: Candidates in pixels.
        probabilities: Their weights, not all zero; None for equal ones.
        seed: The run's seed.
        labels: What is drawn, for example `("size", partition, step)`.

    Returns:
        The drawn size in pixels.
    """
    weights = torch.tensor([1.0] * len(sizes) if probabilities is None else probabilities, dtype=torch.float32)
    index = torch.multinomial(weights, 1, generator=make_generator(seed, *labels))
    return sizes[int(index)]
