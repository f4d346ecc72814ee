"""How a feature cache stores dense features: in half precision, in 8 bits a number, or as principal components.

A format turns the features of a shard's images into named tensors and back. What it cannot store exactly is lost for
the student: `python -m benchmarks.feature_cache` measures how much, and what it saves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from training.recipe import RecipeError, ViewsRecipe


LEVELS = 255
"""Steps between the smallest and the largest of 8-bit numbers."""

Entries = dict[str, Tensor]
"""Named tensors of one teacher's features; those in `FeatureFormat.of_shard` are of a whole shard, the others have a
row for each image."""


class FeatureFormat(ABC):
    """Stores one teacher's features.

    Attributes:
        of_images: Names of its entries that have a row for each image.
        of_shard: Names of its entries that are of all images of a shard.
    """

    of_images: tuple[str, ...] = ("features",)
    of_shard: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, features: Tensor) -> Entries:
        """Return what is kept of some images of a shard.

        Args:
            features: `(n, rows, cols, C)` float32.

        Raises:
            ValueError: If the format cannot hold a value; the message goes on after the teacher's name.
        """

    def finish(self, entries: Entries) -> Entries:
        """Return the entries of a shard, from what `encode` returned for all of its images, one after the other."""
        return entries

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

    of_images = ("features", "low", "step")

    def encode(self, features: Tensor) -> Entries:
        check_finite(features)
        low, high = features.amin((1, 2)), features.amax((1, 2))
        step = (high - low) / LEVELS
        place = (features - low[:, None, None]) / torch.where(step > 0, step, 1.0)[:, None, None]
        return {"features": place.round().clamp(0, LEVELS).to(torch.uint8), "low": low, "step": step}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return torch.addcmul(entries["low"][row], entries["features"][row].float(), entries["step"][row])


class PrincipalComponents(FeatureFormat):
    """The first principal components of a shard's features, in another format.

    Each shard has a basis of its own, from all of its images' tokens, and keeps it: a shard can be read without the
    others, whoever wrote them, and no pass over the images comes before the first one. Where there are not more
    channels than components, nothing but rounding is lost.

    Args:
        num_components: At most; more than channels are not kept.
        inner: How components are stored.
    """

    of_shard = ("mean", "basis")

    def __init__(self, num_components: int, inner: FeatureFormat) -> None:
        self.num_components, self.inner = num_components, inner
        self.of_images = inner.of_images

    def encode(self, features: Tensor) -> Entries:
        return {"features": to_half(features)}

    def finish(self, entries: Entries) -> Entries:
        maps = entries["features"]
        mean, basis = principal_axes(maps, self.num_components)
        components = torch.stack([(each.float() - mean) @ basis.T for each in maps])
        return {**self.inner.finish(self.inner.encode(components)), "mean": mean, "basis": basis}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        components = self.inner.decode(entries, row).float()
        return components @ entries["basis"] + entries["mean"]


FORMATS: dict[str, Callable[[ViewsRecipe], FeatureFormat]] = {
    "float16": lambda views: HalfPrecision(),
    "int8": lambda views: EightBits(),
    "pca": lambda views: PrincipalComponents(views.cache_components, HalfPrecision()),
    "pca_int8": lambda views: PrincipalComponents(views.cache_components, EightBits()),
}


def build_format(views: ViewsRecipe) -> FeatureFormat:
    """Return the format that a recipe asks for."""
    return FORMATS[views.cache_format](views)


def principal_axes(maps: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Return the mean `(C,)` of features, and the axes of their largest variance, `(components, C)` in float32.

    Moments are summed in float64, image by image, so that no more than one is held in float32.

    Args:
        maps: `(n, rows, cols, C)`.
        num_components: At most; not more than C are returned.
    """
    mean = torch.stack([each.double().mean((0, 1)) for each in maps]).mean(0).float()
    moments = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for each in maps:
        tokens = each.float().flatten(0, 1) - mean
        moments += (tokens.T @ tokens).double()
    axes = torch.linalg.eigh(moments).eigenvectors  # in order of growing variance
    return mean, axes.flip(1)[:, :num_components].T.float().contiguous()


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
