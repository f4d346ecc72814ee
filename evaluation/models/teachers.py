"""Teachers as models of an evaluation; they normalize images on their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_dtype

from modeling_radio.core.opening import network_fingerprint
from modeling_radio.metrics.feature_model import Encoding
from modeling_radio.training.teachers.base import Teacher


MAX_SIZE_PX = 4096
"""Our choice for models without a bound of their own: beyond it no machine has the memory."""


class ResizedImages:
    """Preprocessing of models that normalize images on their own: floats in [0, 1], sides of whole patches."""

    adaptor_names: tuple[str, ...] = ()
    max_size_px = MAX_SIZE_PX
    runs_at_any_size = True
    patch_size: int
    size_px: int

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return the image in [0, 1], its sides whole patches."""
        return self.preprocessing(size_px)(image)

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size."""
        return partial(resized, size_px=size_px or self.size_px, patch_size=self.patch_size)


class TeacherFeatures(ResizedImages):
    """A teacher on images of the student's size.

    Args:
        teacher: Teacher on its device.
        patch_size: Pixels for each position of the features: the student's patch, which the teacher was built for.
        size_px: Shorter side of the images.
        name: Name of its row in tables.
    """

    def __init__(self, teacher: Teacher, *, patch_size: int, size_px: int, name: str) -> None:
        self.teacher, self.patch_size, self.size_px, self.name = teacher, patch_size, size_px, name

    @property
    def device(self) -> torch.device:
        """Device of the teacher."""
        return self.teacher.mean.device

    def fingerprint(self) -> str:
        """Return a hash of its network, and the settings that change its features, such as options for a layer."""
        teacher = self.teacher
        options = f"{type(teacher).__qualname__} {sorted(teacher.options.items())}"
        return f"{options} {network_fingerprint(teacher)} {teacher.run} {teacher.grid_stride} {self.size_px}"

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return the teacher's features."""
        return Encoding(*self.teacher.extract_features(pixels))


def resized(image: Tensor, size_px: int, patch_size: int) -> Tensor:
    """Return an image in [0, 1] whose shorter side is `size_px` and whose sides are whole patches.

    Args:
        image: RGB, uint8 `(3, height, width)`.
        size_px: Rounded to whole patches.
        patch_size: Pixels.
    """
    height, width = image.shape[-2:]
    scale = size_px / min(height, width)
    target = [max(1, round(side * scale / patch_size)) * patch_size for side in (height, width)]
    pixels = to_dtype(image, torch.float32, scale=True)
    if target == [height, width]:
        return pixels
    return F.interpolate(pixels[None], target, mode="bicubic", antialias=True)[0].clamp(0, 1)
