"""What belongs to the pixels of an image: masks of class ids, and depth maps."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_radio.image_processing_radio import UNREADABLE, load_upright, open_picture


INTEGER_UNITS_PER_METER = 1000.0  # 16-bit depth is in millimeters, as in NYU Depth v2; KITTI has 256

_UNREADABLE = (*UNREADABLE, TokenError)  # NumPy's, of broken files and ragged lists


def read_mask(picture: Any, where: str) -> Tensor:
    """Return the class of each pixel, int64 `(height, width)`.

    Args:
        picture: A PIL image with a palette or gray levels, or an array.
        where: Names the image in errors.

    Raises:
        ValueError: If there is none, or it has colors.
    """
    if picture is None:
        raise ValueError(f"The mask of {where} is missing: give it one, or leave the image out.")
    ids = np.asarray(picture)
    if ids.ndim != 2:
        raise ValueError(
            f"The mask of {where} has colors, shape {ids.shape}: masks are PNGs with a palette or gray levels "
            "whose values are class ids."
        )
    return torch.from_numpy(ids.astype(np.int64))


def read_depth(target: Any, where: str, units_per_meter: float | None = None) -> Tensor:
    """Return a depth map in meters, float32 `(height, width)`, 0 where the depth is not known.

    Args:
        target: A path to `.npy` or PNG, a picture or nested lists.
        where: Names the image in errors.
        units_per_meter: Of the stored numbers; None takes 1000 for whole numbers and 1 for others.

    Raises:
        ValueError: If it cannot be read, is no map of numbers or has no known depth.
    """
    where = f"{where} ({target})" if isinstance(target, str) else where
    values = _read_values(target, where)
    if values.ndim != 2:
        raise ValueError(f"The depth map of {where} must have the shape (height, width), got {values.shape}.")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"The depth map of {where} must have whole or floating-point numbers, got {values.dtype}.")
    if units_per_meter is None:
        units_per_meter = INTEGER_UNITS_PER_METER if np.issubdtype(values.dtype, np.integer) else 1.0
    depth = torch.from_numpy(values.astype(np.float32)) / units_per_meter
    is_known = depth.isfinite() & (depth > 0)
    if not is_known.any():
        raise ValueError(
            f"The depth map of {where} has no pixel with a depth, a finite number above 0: correct it, or leave "
            "the image out."
        )
    return depth.where(is_known, 0.0)


def _read_values(target: Any, where: str) -> np.ndarray:
    """Return a depth map as it is stored."""
    try:
        if not isinstance(target, str):
            return np.asarray(target)
        if Path(target).suffix == ".npy":
            return np.load(target, allow_pickle=False)
        with open_picture(target) as picture:
            return np.asarray(load_upright(picture))
    except _UNREADABLE as error:
        raise ValueError(f"The depth map of {where} cannot be read: {error}") from error
