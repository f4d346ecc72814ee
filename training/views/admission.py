"""Which images a partition may see: those that are large enough for its resolutions."""

from __future__ import annotations

from torch import Tensor

from training.data.image_table import Images
from training.recipe import PartitionRecipe, Recipe, RecipeError


def used_px(recipe: Recipe, partition: PartitionRecipe) -> int:
    """Return the resolution that a partition uses images at: its largest, or that of cached views."""
    return recipe.data.image_size_px if recipe.views.teachers == "cached" else max(partition.sizes_px)


def smallest_used_px(recipe: Recipe) -> int:
    """Return the smallest of these over all partitions: what is too small for it is used by none."""
    return min(used_px(recipe, partition) for partition in recipe.partitions)


def admit_images(images: Images, recipe: Recipe) -> dict[str, Tensor]:
    """Return the numbers of the images that each partition may see; partitions that may see all are left out.

    Args:
        images: The data set.
        recipe: Says by `data.filters.min_side_ratio` how large an image must be.

    Raises:
        RecipeError: If no image is large enough for a partition.
    """
    ratio, sides = recipe.data.filters.min_side_ratio, images.short_sides()
    if ratio is None or sides is None:
        return {}
    admitted = {}
    for partition in recipe.partitions:
        least = ratio * used_px(recipe, partition)
        numbers = (sides >= least).nonzero().flatten()
        if not len(numbers):
            raise RecipeError(
                f"`data.filters.min_side_ratio` must leave an image of at least {least:.0f} px for partition "
                f"{partition.name!r}, got {ratio}: the largest has {int(sides.max())} px. Lower it, or `sizes_px`."
            )
        if len(numbers) < len(sides):
            admitted[partition.name] = numbers
    return admitted
