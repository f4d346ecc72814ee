"""What any model must beat: the pixels themselves, and a network of random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioModel
from training.evaluation.models.base import Encoding
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.models.teachers import MAX_SIZE_PX, resized


RAW_PIXELS = "raw pixels"
"""Name of `RawPixels` in results."""
RANDOM_VIT = "random ViT"
"""Name of `random_vit` in results."""
THUMBNAIL_PX = 32
"""Our choice, as CIFAR's images; on the demo's objects 4 to 64 px score alike."""


class RawPixels:
    """The pixels themselves: a thumbnail as summary, and of each patch what a ViT's patch projection sees.

    Args:
        patch_size: Side of a patch in pixels.
        size_px: Shorter side of the images.
        device: Where they are cut, and probes of them are trained.
    """

    name = RAW_PIXELS
    adaptor_names: tuple[str, ...] = ()
    max_size_px = MAX_SIZE_PX
    runs_at_any_size = True

    def __init__(self, patch_size: int, size_px: int, device: torch.device | str = "cpu") -> None:
        self.patch_size, self.size_px, self.device = patch_size, size_px, torch.device(device)

    def fingerprint(self) -> str:
        """Return the sizes."""
        return f"{self.name} {self.patch_size} {self.size_px} {THUMBNAIL_PX}"

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return the image in [0, 1], its sides whole patches."""
        return self.preprocessing(size_px)(image)

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size."""
        return partial(resized, size_px=size_px or self.size_px, patch_size=self.patch_size)

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return `3 * THUMBNAIL_PX**2` summary and `3 * patch_size**2` feature channels."""
        thumbnail = F.interpolate(pixels, (THUMBNAIL_PX, THUMBNAIL_PX), mode="bilinear", antialias=True)
        return Encoding(thumbnail.flatten(1), F.pixel_unshuffle(pixels, self.patch_size))


def random_vit(
    config: RadioConfig, *, size_px: int, seed: int = 0, device: torch.device | None = None
) -> RadioFeatures:
    """Return a network of the same architecture that was never trained.

    Args:
        config: Of the model beside which it stands.
        size_px: Shorter side of the images.
        seed: Draws the weights, on the CPU; the global random state is left alone.
        device: Where it runs; None for the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RadioModel(config.without_adaptors())
    if device is not None:
        model = model.to(device)  # pyrefly: ignore[bad-argument-type]
    return RadioFeatures(model.eval(), name=RANDOM_VIT, size_px=size_px)
