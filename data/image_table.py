"""Encoded images with random access as a training set, decoded on demand, whole or as square crops."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import (
    DRAFT_GAP,
    EncodedImage,
    LeastScale,
    SkippedImages,
    crop_to_shape,
    to_tensor,
)


Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

CROP_MIN_AREA = 0.3
"""Least share of the area of an image's largest square that a random crop keeps. Our choice."""

MAX_ATTEMPTS = 1000
"""Our choice: as many unusable images in a row are no accident."""


class EncodedRows(Protocol):
    """Encoded images by number, the source of an `ImageTable`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedImage: ...

    def fingerprint(self) -> str: ...

    def weights(self) -> Sequence[Any] | None:
        """Return the weight of each row as it is written there; None if the source has no weights."""
        ...


class SelectedRows:
    """Some of the rows of a table.

    Args:
        rows: All rows.
        numbers: The numbers of those to take, in order.
    """

    def __init__(self, rows: EncodedRows, numbers: Sequence[int]) -> None:
        self.rows, self.numbers = rows, array("q", numbers)  # data workers share it

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> EncodedImage:
        return self.rows[self.numbers[index]]

    def weights(self) -> Sequence[Any] | None:
        weights = self.rows.weights()
        return None if weights is None else [weights[number] for number in self.numbers]

    def fingerprint(self) -> str:
        """Return the fingerprint of all rows, and a hash of the numbers that are taken."""
        return f"{len(self)} of {self.rows.fingerprint()}, chosen {hash_of({'numbers': list(self.numbers)})[:8]}"


class Images(Dataset[Tensor]):
    """Images by number: item `index` is a uint8 tensor `(3, height, width)`, RGB; of arrays float32, any channels.

    Attributes:
        left_out: Number of images that were left out, by the reason.
    """

    left_out: Mapping[str, int] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a line that changes when the content of these images does, though their source has the same name."""
        raise NotImplementedError

    def source_of(self, index: int) -> str:
        """Return the main source of image `index`, such as its photograph; by default each image is its own.

        Images of one source resemble each other: intervals must not count them as independent.
        """
        return str(index)

    def short_sides(self) -> Tensor | None:
        """Return the shorter side of every image's file, `(len(self),)` in pixels; None where it is not known."""
        return None

    def draft(self, index: int, least_scale: LeastScale) -> Tensor:
        """Return image `index`, or a smaller version of it where that is faster to decode.

        Args:
            index: Number of the image.
            least_scale: From its height and width, in pixels, to the smallest factor of both that is enough.
        """
        return self[index]


class ImageTable(Images):
    """Images by number, decoded on demand.

    Item `index` depends on (seed, index, size) and the rows alone; indices beyond the number of rows show them again,
    cropped differently. An image that turns out to be unusable is replaced by the next one, and the log names it.

    Args:
        rows: The encoded images.
        size: Side of random square crops, pixels; None for whole images of any shape.
        num_images: Length of the data set; None takes every row once.
        seed: Decides the random crops.
        is_centered: Take the largest centered square instead of a random one.
        skipped: Counts unusable images.
    """

    def __init__(
        self,
        rows: EncodedRows,
        *,
        size: int | None = None,
        num_images: int | None = None,
        seed: int = 0,
        is_centered: bool = False,
        skipped: SkippedImages | None = None,
    ) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.is_centered = is_centered
        self.num_images = len(rows) if num_images is None else num_images
        self.skipped = SkippedImages() if skipped is None else skipped
        self._unusable: set[int] = set()
        self._short_sides: Tensor | None = None
        self._has_each_row_once = num_images is None

    def __len__(self) -> int:
        return self.num_images

    def source_of(self, index: int) -> str:
        """Return the row of image `index`, which other indices may crop differently."""
        return str(index % len(self.rows))

    def fingerprint(self) -> str:
        """Return the fingerprint of the rows."""
        return self.rows.fingerprint()

    def short_sides(self) -> Tensor | None:
        if self._short_sides is None:
            return None
        return self._short_sides[torch.arange(len(self)) % len(self.rows)]

    def select(self, numbers: Sequence[int], short_sides: Sequence[int], left_out: Mapping[str, int]) -> ImageTable:
        """Return a table of some of these rows, with an image for each, or with the number that this one was given.

        Args:
            numbers: Numbers of the rows, at least one.
            short_sides: The shorter side of each of them in pixels.
            left_out: Number of the other rows, by the reason.
        """
        selected = copy.copy(self)
        selected.num_images = len(numbers) if self._has_each_row_once else self.num_images
        selected.rows, selected.left_out, selected._unusable = SelectedRows(self.rows, numbers), dict(left_out), set()
        selected._short_sides = torch.tensor(short_sides)
        return selected

    def repeated(self, numbers: Sequence[int]) -> ImageTable:
        """Return a table of these rows, some of which may come several times, with an image for each number."""
        sides = None if self._short_sides is None else self._short_sides[list(numbers)]
        repeated = self.select(numbers, [], self.left_out)
        repeated._short_sides = sides
        return repeated

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, height, width)`, RGB; `(3, size, size)` where a size is given."""
        if self.size is None:
            return self._read(index, None)
        needed = DRAFT_GAP * self.size  # a random crop keeps more than half of the shorter side
        return self._read(index, lambda size: needed / min(size))

    def draft(self, index: int, least_scale: LeastScale) -> Tensor:
        return self._read(index, least_scale) if self.size is None else self[index]

    def _read(self, index: int, least_scale: LeastScale | None) -> Tensor:
        if not 0 <= index < self.num_images:
            raise IndexError(f"`index` must be in [0, {self.num_images}), got {index}.")
        num_attempts = min(len(self.rows), MAX_ATTEMPTS)
        for attempt in range(num_attempts):
            row = (index + attempt) % len(self.rows)
            rgb = None if row in self._unusable else self.skipped.decode(self.rows[row], least_scale)
            if rgb is not None:
                return to_tensor(self._crop(rgb, index))
            self._unusable.add(row)
        name = self.rows[index % len(self.rows)].name
        raise ValueError(f"{num_attempts} images in a row could not be decoded; the first is {name}.")

    def _crop(self, rgb: Image.Image, index: int) -> Image.Image:
        if self.size is None:
            return rgb
        if self.is_centered:
            return crop_to_shape(rgb, self.size, self.size)
        area, x, y, mirror = np.random.default_rng([self.seed, index]).random(4)
        side = min(rgb.size) * (CROP_MIN_AREA + (1 - CROP_MIN_AREA) * area) ** 0.5
        left, top = x * (rgb.width - side), y * (rgb.height - side)
        box = (left, top, left + side, top + side)
        crop = rgb.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else crop
