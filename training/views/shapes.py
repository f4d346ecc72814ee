"""Sizes of the images of each step: resolutions and aspect ratios, drawn from the seed and the step's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_radio.core.seeds import make_generator
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe


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


def used_px(recipe: Recipe, partition: PartitionRecipe) -> int:
    """Return the resolution at which a partition uses images: its largest, or that of cached views."""
    return recipe.data.image_size_px if recipe.views.teachers == "cached" else max(partition.sizes_px)


def smallest_used_px(recipe: Recipe) -> int:
    """Return the smallest `used_px` of all partitions. No partition uses an image that is too small for it."""
    return min(used_px(recipe, partition) for partition in recipe.partitions)


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
