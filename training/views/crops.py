"""Geometry and color of what the student and the teachers see, in whole patches, so that features align exactly."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from training.recipe import ViewsRecipe
from training.views.batches import Batch


def crop_region(image: Tensor, region: Tensor, side_px: int, views: ViewsRecipe) -> Tensor:
    """Return a random part of an image as a square, keeping colors: the view that all crops are cut from.

    Args:
        image: `(3, height, width)` uint8.
        region: 4 uniform numbers that decide scale, aspect ratio, row and column.
        side_px: Side of the result in pixels.
        views: The recipe's section, with the bounds of scale and aspect ratio.

    Returns:
        `(3, side_px, side_px)` uint8.
    """
    height, width = image.shape[1:]
    scale, aspect, row, col = region.tolist()
    area = height * width * _between(views.crop_scale, scale)
    ratio = views.crop_aspect[0] * (views.crop_aspect[1] / views.crop_aspect[0]) ** aspect
    crop_height = min(max(round((area / ratio) ** 0.5), 1), height)
    crop_width = min(max(round((area * ratio) ** 0.5), 1), width)
    top, left = round(row * (height - crop_height)), round(col * (width - crop_width))
    return tvF.resized_crop(image, top, left, crop_height, crop_width, [side_px, side_px], antialias=True)


def draw_shifts(batch: Batch, label: str, views: ViewsRecipe, *, is_whole: bool = False) -> Tensor:
    """Return `(batch, 2)` whole-patch shifts (rows, columns) from the middle of the view, in [-max, max].

    Rounded normal numbers, as in NVIDIA's TAO toolkit; each label (the student, each teacher) draws its own.
    `is_whole` returns those of the step's whole batch, of which this one is a part.
    """
    shifts = (batch.normal(f"shift:{label}", 2, is_whole=is_whole) * views.shift_deviation_patches).round()
    return shifts.clamp(-views.max_shift_patches, views.max_shift_patches).long()


def draw_window_offsets(batch: Batch, label: str, num_cells: int, window_cells: int) -> Tensor:
    """Return `(batch, 2)` offsets of a window in a square of cells, every place equally likely."""
    return (batch.uniform(label, 2) * (num_cells - window_cells + 1)).long()


class WindowShift(NamedTuple):
    """The way from one window to another, `(batch, 2)` rows and columns: in cells of the image, and in tokens."""

    in_cells: Tensor
    in_tokens: Tensor


def exact_shift(cells: Tensor, window_cells: int, window_tokens: int) -> WindowShift:
    """Round a shift towards zero, to where it is a whole number of cells and of tokens.

    Args:
        cells: `(batch, 2)` integers, the wanted shift.
        window_cells: Side of the window in cells of the image.
        window_tokens: Side of the same window, resized, in tokens.
    """
    divisor = math.gcd(window_cells, window_tokens)
    steps = torch.div(cells, window_cells // divisor, rounding_mode="trunc")
    return WindowShift(steps * (window_cells // divisor), steps * (window_tokens // divisor))


def flip_shift(shift: Tensor, is_flipped: Tensor) -> Tensor:
    """Return a `(batch, 2)` shift of crops as it is once those images are mirrored: columns run the other way."""
    return torch.where(is_flipped[:, None], shift * torch.tensor([1, -1]), shift)


def draw_flips(batch: Batch, views: ViewsRecipe) -> Tensor:
    """Return `(batch,)` bool: which images are mirrored."""
    return batch.uniform("flip") < views.flip_probability


def cut_windows(maps: Tensor, offsets: Tensor, window: int) -> Tensor:
    """Cut one square window out of each map.

    Args:
        maps: `(batch, channels, rows, cols)`: pixels or features.
        offsets: `(batch, 2)` first row and column of each window.
        window: Its side, in rows.

    Returns:
        `(batch, channels, window, window)`.
    """
    if maps.shape[-2:] == (window, window):
        return maps
    places = zip(maps.unbind(0), offsets.tolist(), strict=True)
    return torch.stack([each[:, row : row + window, col : col + window] for each, (row, col) in places])


def flip(maps: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror those maps, `(batch, channels, rows, cols)`, for which `is_flipped`, `(batch,)` bool, is set."""
    return torch.where(is_flipped.to(maps.device)[:, None, None, None], maps.flip(-1), maps)


def jitter_color(pixel_values: Tensor, batch: Batch, views: ViewsRecipe) -> Tensor:
    """Change contrast and brightness of the student's images, which the teachers see unchanged.

    Args:
        pixel_values: `(batch, 3, height, width)` in [0, 1].
        batch: Source of the random numbers.
        views: The recipe's section, with the strengths of both.

    Returns:
        Same shape and range.
    """
    if not views.contrast and not views.brightness:
        return pixel_values
    contrast = 1 + views.contrast * (2 * batch.uniform("contrast", 3, 1, 1) - 1)
    brightness = views.brightness * (2 * batch.uniform("brightness", 1, 1, 1) - 1)
    device = pixel_values.device
    return (pixel_values * contrast.to(device)).add_(brightness.to(device)).clamp_(0, 1)


def _between(bounds: tuple[float, float], fraction: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * fraction
