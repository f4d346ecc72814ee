"""Geometry and color of what the student and the teachers see, in whole patches, so that features align exactly."""

import math

import torch
from torch import Tensor

from training.recipe import PartitionRecipe, Recipe, RecipeError, ViewsRecipe
from training.views.batches import Batch
from training.views.shapes import Grid


def draw_shifts(batch: Batch, label: str, views: ViewsRecipe) -> Tensor:
    """Return `(batch, 2)` whole-patch shifts (rows, columns) of a crop from the region, in [-max, max].

    Rounded normal numbers, as in NVIDIA's TAO toolkit; each label (the student, each teacher) draws its own.
    """
    shifts = (batch.normal(f"shift:{label}", 2) * views.shift_deviation_patches).round()
    return shifts.clamp(-views.max_shift_patches, views.max_shift_patches).long()


def draw_other_shifts(batch: Batch, label: str, views: ViewsRecipe, taken: Tensor) -> Tensor:
    """Return shifts as of `draw_shifts`, but in no image the one that is `taken`, `(batch, 2)`.

    Where they would be the same, the other lies a patch further up, down, left or right, which may be one beyond max.
    """
    shifts = draw_shifts(batch, label, views)
    steps = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])[(4 * batch.uniform(f"other:{label}")).long()]
    return torch.where((shifts == taken).all(1, keepdim=True), taken + steps, shifts)


def draw_window_offsets(batch: Batch, label: str, num_cells: int) -> Tensor:
    """Return `(batch, 2)` offsets of each image's window in a square of cells, every place equally likely."""
    windows = torch.tensor([shape.window for shape in batch.shapes])
    return (batch.uniform(label, 2) * (num_cells - windows + 1)).long()


def check_other_windows(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
    """Refuse MESA with windows of cached images that leave no other one to the student's average.

    Args:
        recipe: The recipe.
        partition: One of its partitions.
        patch_size: The student's patch in pixels.

    Raises:
        RecipeError: If the images are too small.
    """
    if recipe.mesa.weight == 0 or recipe.views.teachers != "cached":
        return
    side_px = recipe.data.image_size_px
    for size in partition.sizes_px:
        for window in partition.windows_px or [size]:
            # A window in the middle must be able to move by a token, which is `window / size` patches.
            least = window + patch_size * (2 * math.ceil(window / size) - 1)
            if side_px < least:
                raise RecipeError(
                    f"`data.image_size_px` must be at least {least} with `mesa.weight` above 0 and windows of {window} "
                    f"px for {size} px (`partitions.{partition.name}`), got {side_px}. The student's moving average "
                    "would see the student's own window. Or take smaller windows."
                )


def draw_other_place(number: Tensor, before: Tensor, behind: Tensor) -> Tensor:
    """Return `(batch, 2)` shifts, each but none at all equally likely; none where there is no other.

    Args:
        number: `(batch,)` uniform.
        before: `(batch, 2)` integers, the farthest shift up and to the left.
        behind: `(batch, 2)` integers, the farthest down and to the right.
    """
    counts = before + behind + 1
    num_others = counts.prod(1) - 1
    place = (number * num_others).long()
    own = before[:, 0] * counts[:, 1] + before[:, 1]
    place += ((place >= own) & (num_others > 0)).long()
    return torch.stack([place // counts[:, 1], place % counts[:, 1]], dim=1) - before


def flip_shift(shift: Tensor, is_flipped: Tensor) -> Tensor:
    """Return a `(batch, 2)` shift of crops as it is once those images are mirrored: columns run the other way."""
    return torch.where(is_flipped[:, None], shift * torch.tensor([1, -1]), shift)


def draw_flips(batch: Batch, views: ViewsRecipe) -> Tensor:
    """Return `(batch,)` bool: which images are mirrored."""
    return batch.uniform("flip") < views.flip_probability


def cut_windows(maps: Tensor, offsets: Tensor, window: Grid) -> Tensor:
    """Cut one window out of each map.

    Args:
        maps: `(batch, channels, rows, cols)`: pixels or features.
        offsets: `(batch, 2)` first row and column of each window.
        window: Its rows and columns.

    Returns:
        `(batch, channels, *window)`.
    """
    if maps.shape[-2:] == window:
        return maps
    places = zip(maps.unbind(0), offsets.tolist(), strict=True)
    return torch.stack([each[:, row : row + window.rows, col : col + window.cols] for each, (row, col) in places])


def flip(maps: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror those maps, `(batch, channels, rows, cols)`, for which `is_flipped`, `(batch,)` bool, is set."""
    return torch.where(is_flipped.to(maps.device)[:, None, None, None], maps.flip(-1), maps)


def draw_colors(batch: Batch, views: ViewsRecipe) -> tuple[Tensor, Tensor]:
    """Return how each student's image changes: factors of its channels `(batch, 3, 1, 1)`, and what is added to all."""
    contrast = 1 + views.contrast * (2 * batch.uniform("contrast", 3, 1, 1) - 1)
    return contrast, views.brightness * (2 * batch.uniform("brightness", 1, 1, 1) - 1)


def change_colors(pixel_values: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Change contrast and brightness of the student's images, which the teachers see unchanged.

    Args:
        pixel_values: `(batch, 3, height, width)` in [0, 1].
        contrast: As of `draw_colors`.
        brightness: Likewise.

    Returns:
        Same shape and range.
    """
    device = pixel_values.device
    return (pixel_values * contrast.to(device)).add_(brightness.to(device)).clamp_(0, 1)
