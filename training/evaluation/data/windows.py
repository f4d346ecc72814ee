"""Square windows of images for dense tasks: every model takes squares, and places in pixels and features correspond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, resize

from training.evaluation.data.base import ByNumber, Pictures


STRIDE = 2 / 3
"""Of a window, as ADE20k is measured in AM-RADIO. https://arxiv.org/abs/2312.06709"""


class Place(NamedTuple):
    """Where a window lies: the image, and the corner in pixels of the image as it was resized."""

    image: int
    top: int
    left: int


class Windows:
    """Windows over images whose shorter side is resized to that of a window; a square image is one window.

    Args:
        pictures: The images.
        window_px: Side of a window.
        stride: Share of a window from one to the next.
    """

    def __init__(self, pictures: Pictures, window_px: int, stride: float = STRIDE) -> None:
        self.pictures, self.window_px = pictures, window_px
        self.frames = [_frame(pictures.size(index), window_px) for index in range(len(pictures))]
        step = max(1, round(window_px * stride))
        self.places = [
            Place(image, top, left)
            for image, (height, width) in enumerate(self.frames)
            for top in _starts(height, window_px, step)
            for left in _starts(width, window_px, step)
        ]
        self._by_image: list[list[int]] = [[] for _ in self.frames]
        for index, place in enumerate(self.places):
            self._by_image[place.image].append(index)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        """Return a window, uint8 `(3, window_px, window_px)`."""
        image = self.places[index].image
        if self._last is None or self._last[0] != image:  # windows of an image follow each other
            picture, frame = self.pictures[image], self.frames[image]
            is_same = tuple(picture.shape[1:]) == frame
            self._last = image, picture if is_same else resize(picture, list(frame), InterpolationMode.BICUBIC)
        return self.cut(self._last[1], index)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a window."""
        return (self.window_px, self.window_px)

    def of_image(self, image: int) -> list[int]:
        """Return the numbers of an image's windows."""
        return self._by_image[image]

    def cut(self, frame: Tensor, index: int) -> Tensor:
        """Return what a window shows of anything as large as the resized image, `(..., height, width)`."""
        _, top, left = self.places[index]
        return frame[..., top : top + self.window_px, left : left + self.window_px]

    def target(self, targets: ByNumber[Tensor], index: int) -> Tensor:
        """Return what a window shows of the mask or depth map of its image, `(window_px, window_px)`."""
        image = self.places[index].image
        target, frame = targets[image], self.frames[image]
        if tuple(target.shape) != tuple(self.pictures.size(image)):
            raise ValueError(
                f"Masks and depth maps must be as large as their images, got {tuple(target.shape)} pixels beside "
                f"{self.pictures.size(image)} of image {image}."
            )
        if tuple(target.shape) != frame:
            target = F.interpolate(target[None, None].float(), frame, mode="nearest-exact")[0, 0].to(target.dtype)
        return self.cut(target, index)

    def merged(self, image: int, maps: Sequence[Tensor]) -> Tensor:
        """Return the mean of the maps of an image's windows where these overlap, `(channels, height, width)`.

        Args:
            image: Number of the image.
            maps: One for each of its windows, `(channels, window_px, window_px)`.
        """
        if len(maps) == 1:
            return maps[0]
        total = maps[0].new_zeros(len(maps[0]), *self.frames[image])
        count = maps[0].new_zeros(self.frames[image])
        for index, each in zip(self.of_image(image), maps, strict=True):
            self.cut(total, index).add_(each)
            self.cut(count, index).add_(1)
        return total / count


def _frame(size: tuple[int, int], window_px: int) -> tuple[int, int]:
    scale = window_px / min(size)
    return (max(window_px, round(size[0] * scale)), max(window_px, round(size[1] * scale)))


def _starts(length: int, window: int, step: int) -> list[int]:
    """Return where windows begin that cover a length; the last one ends where it does."""
    return [*range(0, length - window, step), length - window]
