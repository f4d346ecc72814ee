"""Geometry and color of what the student and the teachers see, in whole patches, so that features align exactly."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from training.recipe import ViewsRecipe
from training.views.batches import Batch
from training.views.shapes import Grid


def draw_shifts(batch: Batch, label: str, views: ViewsRecipe) -> Tensor:
    """Return `(batch, 2)` whole-patch shifts (rows, columns) of a crop from the region, in [-max, max].

    Rounded normal numbers, as in NVIDIA's TAO toolkit; each label (the student, each teacher) draws its own.
    """
    shifts = (batch.normal(f"shift:{label}", 2) * views.shift_deviation_patches).round()
    return shifts.clamp(-views.max_shift_patches, views.max_shift_patches).long()


def draw_window_offsets(batch: Batch, label: str, num_cells: int) -> Tensor:
    """Return `(batch, 2)` offsets of each image's window in a square of cells, every place equally likely."""
    windows = torch.tensor([shape.window for shape in batch.shapes])
    return (batch.uniform(label, 2) * (num_cells - windows + 1)).long()


class WindowShift(NamedTuple):
    """The way from one window to another, `(batch, 2)` rows and columns: in cells of the image, and in tokens."""

    in_cells: Tensor
    in_tokens: Tensor


def exact_shift(cells: Tensor, window: Grid, grid: Grid) -> WindowShift:
    """Round a shift towards zero, to where it is a whole number of cells and of tokens.

    Args:
        cells: `(batch, 2)` integers, the wanted shift.
        window: The window in cells of the image.
        grid: The same window, resized, in tokens.
    """
    divisors = torch.tensor([math.gcd(*sides) for sides in zip(window, grid, strict=True)])
    cells_per_step, tokens_per_step = torch.tensor(window) // divisors, torch.tensor(grid) // divisors
    steps = torch.div(cells, cells_per_step, rounding_mode="trunc")
    return WindowShift(steps * cells_per_step, steps * tokens_per_step)


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
