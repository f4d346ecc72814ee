"""Each image beside crops of it at known places, for what must move or stay with the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from foundation.seeds import make_generator
from training.evaluation.data.base import Pictures


SMALLEST = 0.5
"""Share of the square's side that a crop keeps at least; our choice: a zoom by two."""


class Box(NamedTuple):
    """A square in shares of the image's middle square: upper left corner and side."""

    top: float
    left: float
    side: float


class CroppedViews:
    """The middle square of each image, followed by random square crops of it.

    Args:
        pictures: The images.
        num_crops: Of each.
        seed: Decides the crops.
    """

    def __init__(self, pictures: Pictures, num_crops: int, seed: int) -> None:
        self.pictures, self.num_views, self.seed = pictures, num_crops + 1, seed

    def __len__(self) -> int:
        return len(self.pictures) * self.num_views

    def __getitem__(self, index: int) -> Tensor:
        image, _ = divmod(index, self.num_views)
        picture = self.pictures[image]
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        box = self.box(index)
        length = max(1, round(box.side * side))
        first, second = (min(round(share * side), side - length) for share in (box.top, box.left))
        return picture[:, top + first :, left + second :][:, :length, :length]

    def box(self, index: int) -> Box:
        """Return what a view shows of the middle square of its image."""
        image, view = divmod(index, self.num_views)
        if view == 0:
            return Box(0.0, 0.0, 1.0)
        scale, top, left = torch.rand(3, generator=make_generator(self.seed, "crop", image, view)).tolist()
        side = SMALLEST + (1 - SMALLEST) * scale
        return Box(top * (1 - side), left * (1 - side), side)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a view."""
        side = min(self.pictures.size(index // self.num_views))
        length = max(1, round(self.box(index).side * side))
        return (length, length)

    def views_of(self, image: int) -> range:
        """Return the numbers of an image's views, the whole square first."""
        return range(image * self.num_views, (image + 1) * self.num_views)


def square(image: Tensor, side_px: int) -> Tensor:
    """Return the middle square of an image at another size, uint8 `(3, side_px, side_px)`."""
    side = min(image.shape[1:])
    middle = center_crop(image, [side, side])
    return middle if side == side_px else resize(middle, [side_px, side_px], InterpolationMode.BICUBIC)
