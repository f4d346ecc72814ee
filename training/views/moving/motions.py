"""Full equivariance: each viewer's crop is turned, zoomed and tilted by itself, and homographies say how they lie.

NVIDIA's TAO toolkit offers this beside shifts ("full equivariance": rotation, scale, perspective); its sizes are the
recipe's, and how motions are drawn is our choice.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.recipe import ViewsRecipe
from training.views.batches import Batch


Matrix = NDArray[np.float64]

NUM_NUMBERS = 10
"""Of a motion: its angle, its zoom, and how far each of four corners moves in two directions."""

_SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def draw_motions(batch: Batch, label: str) -> Tensor:
    """Return `(batch, 10)` uniform numbers, which decide how a viewer's crops move; each label draws its own."""
    return batch.uniform(f"motion:{label}", NUM_NUMBERS)


def move_crop(
    box: tuple[float, float, float, float], image_size: tuple[int, int], numbers: tuple[float, ...], views: ViewsRecipe
) -> Matrix:
    """Return the corners of a crop that was turned, zoomed and tilted about its middle.

    Where it would leave the image it is made smaller, until it lies within.

    Args:
        box: Top, left, height and width of the crop before, in pixels of the image.
        image_size: Height and width of the image.
        numbers: Ten of [0, 1); one half each for no motion at all.
        views: How large motions may be.

    Returns:
        `(4, 2)`: x and y in pixels of what was the upper left corner, the upper right, lower right and lower left one.
    """
    top, left, height, width = box
    angle, zoom, *offsets = (2 * number - 1 for number in numbers)
    corners = _SQUARE - 0.5 + views.max_perspective * np.array(offsets).reshape(4, 2)
    corners = corners * (width, height) * views.max_zoom**zoom
    angle *= math.radians(views.max_rotation_degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = corners @ turn
    middle = np.array([left + width / 2, top + height / 2])
    room = np.where(corners > 0, np.array(image_size[::-1]) - middle, middle).clip(0)
    with np.errstate(divide="ignore"):
        largest = (room / np.abs(corners)).min()
    return middle + corners * min(1.0, largest)


def from_square(corners: Matrix) -> Matrix:
    """Return the homography from the unit square to four corners, as `move_crop` orders them: `(3, 3)`, last entry 1.

    Raises:
        ValueError: If there is none: three of the corners lie on a line.
    """
    equations, values = [], []
    for (u, v), (x, y) in zip(_SQUARE, corners, strict=True):
        equations += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    try:
        solution = np.linalg.solve(np.array(equations), np.array(values))
    except np.linalg.LinAlgError as error:
        raise ValueError(f"`corners` must be those of a quadrangle, got {corners.tolist()}.") from error
    return np.append(solution, 1.0).reshape(3, 3)


def is_still(numbers: tuple[float, ...], views: ViewsRecipe) -> bool:
    """Return whether such numbers move nothing."""
    angle, zoom, *offsets = (number == 0.5 for number in numbers)
    return (
        (angle or not views.max_rotation_degrees)
        and (zoom or views.max_zoom == 1)
        and (all(offsets) or not views.max_perspective)
    )


def way_between(first: Tensor, second: Tensor) -> Tensor:
    """Return how to come from one crop's place to another's, as `training.losses.alignment` takes it.

    Args:
        first: `(images, 2)` shifts in cells, or `(images, 3, 3)` homographies from a crop's unit square to the image.
        second: Likewise.

    Returns:
        The shift of the second beside the first; or the homography from the second's unit square to the first's.
    """
    return second - first if first.dim() == 2 else torch.linalg.solve(first, second)
