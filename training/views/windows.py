"""ViTDet windows of the student in each step: drawn from the seed and the step's number, and checked before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modeling_radio import RadioConfig
from modeling_radio.core.seeds import make_generator
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError
from modeling_radio.training.views.shapes import Grid, draw_size, extreme_grids


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
