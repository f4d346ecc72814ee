"""How a feature cache stores dense features: in half precision, or in 8 bits a number.

A format turns the features of a shard's images into named tensors and back. What it cannot store exactly is lost for
the student: `python -m benchmarks.all --only data` measures how much, and what it saves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from training.recipe import RecipeError


LEVELS = 255
"""Steps between the smallest and the largest of 8-bit numbers."""

Entries = dict[str, Tensor]
"""Named tensors of one teacher's features, which have a row for each image."""


class FeatureFormat(ABC):
    """Stores one teacher's features.

    Attributes:
        entries: Names of what it keeps of each image.
    """

    entries: tuple[str, ...] = ("features",)

    @abstractmethod
    def encode(self, features: Tensor) -> Entries:
        """Return what is kept of some images of a shard.

        Args:
            features: `(n, rows, cols, C)` float32.

        Raises:
            ValueError: If the format cannot hold a value; the message goes on after the teacher's name.
        """

    @abstractmethod
    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        """Return the features of one image of a shard, `(rows, cols, C)`."""


class HalfPrecision(FeatureFormat):
    """float16: 11 significant bits, values up to 65,504."""

    def encode(self, features: Tensor) -> Entries:
        return {"features": to_half(features)}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return entries["features"][row]


class EightBits(FeatureFormat):
    """8-bit integers between the smallest and the largest value of each channel of each image, in equal steps.

    So no step depends on other images, nothing is clipped, and a channel of small values loses no more than one of
    large ones. The error of a value is at most half a step, 1/510 of its channel's range in that image. Beside the
    integers, the smallest value and the step are kept in float32: 8 bytes for each channel of an image.
    """

    entries = ("features", "low", "step")

    def encode(self, features: Tensor) -> Entries:
        check_finite(features)
        low, high = features.amin((1, 2)), features.amax((1, 2))
        step = (high - low) / LEVELS
        place = (features - low[:, None, None]) / torch.where(step > 0, step, 1.0)[:, None, None]
        return {"features": place.round().clamp(0, LEVELS).to(torch.uint8), "low": low, "step": step}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return torch.addcmul(entries["low"][row], entries["features"][row].float(), entries["step"][row])


FORMATS: dict[str, FeatureFormat] = {"float16": HalfPrecision(), "int8": EightBits()}
"""By `views.cache_format`."""


def to_half(tensor: Tensor) -> Tensor:
    """Return a tensor in float16.

    Raises:
        ValueError: If a value is too large for it, or no number.
    """
    half = tensor.half()
    if not torch.isfinite(half).all():
        check_finite(tensor)
        raise ValueError("gives values that float16 cannot hold: use `views.cache_format=int8`")
    return half


def check_finite(tensor: Tensor) -> None:
    """Raise a `ValueError` if a value is infinite or no number."""
    if not torch.isfinite(tensor).all():
        raise ValueError("gives values that are not finite: look at its precision and its images")


def named_error(teacher: str, error: ValueError) -> RecipeError:
    """Return a format's error with the name of the teacher."""
    return RecipeError(f"Teacher {teacher!r} {error}.")
