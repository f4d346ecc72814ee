"""Pillow's antialiased bicubic resizing as two matrix products: what a CPU would see, up to rounding, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.data.decoding import Size


SUPPORT = 2.0
"""Of the bicubic kernel, in pixels of the coarser of both grids."""

SHARPNESS = -0.5
"""The kernel's free parameter, as in Pillow."""


def resize_box(image: Tensor, box: tuple[float, float, float, float], size: Size) -> Tensor:
    """Return a part of an image, resized as `PIL.Image.resize` does with `box` and BICUBIC.

    Args:
        image: `(3, height, width)` uint8.
        box: Top, left, bottom and right edge of the part in pixels, whole or not.
        size: Height and width of the result.

    Returns:
        `(3, *size)` uint8.
    """
    top, left, bottom, right = box
    rows, row_weights = _weights(top, bottom, size[0], image.shape[1], image.device)
    cols, col_weights = _weights(left, right, size[1], image.shape[2], image.device)
    part = image[:, rows, cols].float()
    return (row_weights @ part @ col_weights.T).round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: float, stop: float, length: int, limit: int, device: torch.device) -> tuple[slice, Tensor]:
    """Return which pixels of a line are read, and what each counts for each pixel of the result, `(length, read)`."""
    scale = (stop - start) / length
    reach = SUPPORT * max(scale, 1.0)
    read = slice(max(math.floor(start + scale / 2 - reach), 0), min(math.ceil(stop - scale / 2 + reach), limit))
    centers = start + (torch.arange(length, dtype=torch.float64, device=device) + 0.5) * scale
    middles = torch.arange(read.start, read.stop, dtype=torch.float64, device=device) + 0.5
    distances = (middles - centers[:, None]).abs() / max(scale, 1.0)
    weights = _bicubic(distances)
    return read, (weights / weights.sum(1, keepdim=True)).float()


def _bicubic(x: Tensor) -> Tensor:
    near = ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1
    far = SHARPNESS * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < SUPPORT, far, 0.0))
