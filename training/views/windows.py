"""Which ViTDet window a step has, of those that act at its resolution, and recipes whose windows would not."""

import torch

from foundation.seeds import make_generator
from modeling_radio import RadioConfig
from training.recipe import PartitionRecipe, RecipeError
from training.views.resolutions import draw_size


def fitting_windows(partition: PartitionRecipe, size_px: int, patch_size: int) -> list[int]:
    """Return the partition's windows that cut the grid of a resolution into several, of equal size unless it says so.

    Args:
        partition: Names the windows, and whether they may be ragged.
        size_px: Side of the student's images.
        patch_size: The student's patch, pixels.

    Returns:
        Sides in tokens, in the recipe's order.
    """
    cells = size_px // patch_size
    windows = [window for window in partition.vitdet_windows or [] if window < cells]
    return [window for window in windows if partition.vitdet_ragged or cells % window == 0]


def draw_window(partition: PartitionRecipe, size_px: int, patch_size: int, seed: int, step: int) -> int | None:
    """Draw the window of a step, from the seed and the step, so the same on every rank and after a restart.

    Args:
        partition: Names the windows and the share of its steps that have one.
        size_px: Side of the student's images at this step.
        patch_size: The student's patch, pixels.
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
    return draw_size(fitting_windows(partition, size_px, patch_size), None, seed, "vitdet", partition.name, step)


def check_windows(partition: PartitionRecipe, config: RadioConfig) -> None:
    """Refuse windows that could not act.

    Args:
        partition: The partition.
        config: The student's configuration.

    Raises:
        RecipeError: If every block of the student attends globally, a resolution has no window that fits it, or a
            window fits no resolution.
    """
    windows = partition.vitdet_windows
    if windows is None:
        return
    path = f"partitions.{partition.name}.vitdet_windows"
    if not config.has_windowed_blocks:
        raise RecipeError(
            f"`{path}` must be null where all blocks attend globally, got {windows}. {_more_windowed(config)}"
        )
    which = "" if partition.vitdet_ragged else " and a divisor of it"
    fitting = {size: fitting_windows(partition, size, config.patch_size) for size in partition.sizes_px}
    for size, found in fitting.items():
        if not found:
            advice = _largest(partition, size, size // config.patch_size)
            raise RecipeError(
                f"`{path}` must have a window smaller than each size's grid{which}, got {windows}. {advice}"
            )
    unused = [window for window in windows if not any(window in found for found in fitting.values())]
    if unused:
        grids = [size // config.patch_size for size in partition.sizes_px]
        raise RecipeError(
            f"`{path}` must be windows smaller than the grid of some size{which}, got {unused} with grids of {grids} "
            "tokens a side. Take them out."
        )


def _more_windowed(config: RadioConfig) -> str:
    """Return how the student comes by windowed blocks."""
    depth = config.num_hidden_layers
    if depth == 1:
        return "The student's only block is its last, which always does."
    if config.vitdet_num_windowed is not None:
        return "Set `student.config.vitdet_num_windowed` to at least 1."
    return (
        f"Set `student.config.vitdet_num_global` to at most {depth // 2} (now {config.vitdet_num_global}, of {depth} "
        "blocks)."
    )


def _largest(partition: PartitionRecipe, size_px: int, cells: int) -> str:
    """Return which windows would fit a resolution."""
    if cells < 2:
        return f"None is for {size_px} px, a single token: take out that size."
    largest = max(window for window in range(1, cells) if partition.vitdet_ragged or cells % window == 0)
    hint = "" if partition.vitdet_ragged else " (with `vitdet_ragged: true` any smaller one would do)"
    return f"The largest for {size_px} px, {cells} tokens a side, is {largest}{hint}."
