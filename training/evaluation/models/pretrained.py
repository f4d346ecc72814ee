"""What networks of other libraries share here: the library's own preprocessing, or the whole image at a chosen size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, resize

from training.evaluation.models.base import Encoding
from training.evaluation.models.teachers import MAX_SIZE_PX, network_fingerprint


PROBE_PX = 512
"""Side of the gray square that tells which size a preprocessing makes; any would do."""


class Preprocessing:
    """How a library prepares images: apart from the network, since processes are sent it; a subclass knows the library.

    Args:
        settings: What decides it, for the fingerprint.
        interpolation: Of images that are shown whole.
    """

    def __init__(self, settings: Mapping[str, Any], interpolation: InterpolationMode) -> None:
        self.settings, self.interpolation = settings, interpolation

    def as_published(self, image: Tensor) -> Tensor:
        """Return what the library's own preprocessing makes of an image, uint8 `(3, height, width)`."""
        raise NotImplementedError

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image as floats, rescaled and normalized as the library does, of the same size."""
        raise NotImplementedError

    def whole(self, image: Tensor, *, size_px: int, patch_size: int) -> Tensor:
        """Return the whole image normalized, its shorter side `size_px`, its ratio kept up to whole patches."""
        height, width = image.shape[-2:]
        scale = size_px / min(height, width) / patch_size
        target = [max(1, round(side * scale)) * patch_size for side in (height, width)]
        return self.normalize(resize(image, target, self.interpolation, antialias=True))


class PretrainedFeatures:
    """A network of another library as evaluations see it; a subclass knows the library.

    Without a size, images are what the library's own preprocessing makes of them, which may cut off their borders. With
    one, the whole image is resized, its ratio kept up to whole patches, and only normalized as the library does.

    Args:
        network: In eval mode, on its device.
        library: Its preprocessing.
        name: Its row in tables.
        size_px: Shorter side of the images; None for the library's own preprocessing.
        dtype: Autocast type such as `torch.bfloat16`; None computes in the network's own type.
        runs_at_any_size: False where the network runs at its own size only.

    Raises:
        ValueError: If the network's answer has no dense features, or it does not take images of `size_px`.
    """

    adaptor_names: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        library: Preprocessing,
        *,
        name: str,
        size_px: int | None = None,
        dtype: torch.dtype | None = None,
        runs_at_any_size: bool = True,
    ) -> None:
        self.network, self.library, self.name, self.dtype = network, library, name, dtype
        self._size_px, self.runs_at_any_size = size_px, runs_at_any_size
        square = library.as_published(torch.full((3, PROBE_PX, PROBE_PX), 128, dtype=torch.uint8))
        self._native_px = min(square.shape[-2:])
        self.patch_size = square.shape[-2] // self.encode(square[None].to(self.device)).features.shape[-2]
        self._check_size(size_px)
        self._try_size(size_px)

    @property
    def size_px(self) -> int:
        """Shorter side of the images, pixels."""
        return self._size_px or self._native_px

    @property
    def max_size_px(self) -> int:
        """Largest side of the images: its only one where it runs at no other."""
        return MAX_SIZE_PX if self.runs_at_any_size else self._native_px

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def fingerprint(self) -> str:
        """Return a hash of the network, and class, preprocessing and precision."""
        name, network = type(self.network).__name__, network_fingerprint(self.network)
        return f"{name} {network} {self.library.settings} {self._size_px} {self.dtype}"

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return what the network takes in of an image; see the class."""
        return self.preprocessing(size_px)(image)

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size."""
        size_px = size_px or self._size_px
        if size_px is None:
            return self.library.as_published
        self._check_size(size_px)
        return partial(self.library.whole, size_px=size_px, patch_size=self.patch_size)

    @torch.no_grad()
    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return the network's summary and features."""
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype is not None):
            return self.answer(pixels)

    def answer(self, pixels: Tensor) -> Encoding:
        """Return summary and dense features of normalized images, `(batch, 3, height, width)`."""
        raise NotImplementedError

    def _try_size(self, size_px: int | None) -> None:
        """Refuse a size at which the network fails, before thousands of images are prepared for it."""
        if size_px is None or size_px == self._native_px:
            return
        try:
            pixels = self.preprocess(torch.full((3, size_px, size_px), 128, dtype=torch.uint8))
            self.encode(pixels[None].to(self.device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            message = f"`size` {size_px} px fails in {type(self.network).__name__}: {reason}. Leave it out."
            raise ValueError(message) from error

    def _check_size(self, size_px: int | None) -> None:
        if size_px is not None and not self.runs_at_any_size and size_px != self._native_px:
            raise ValueError(f"`size` must be {self._native_px} for {self.name!r}, its only one, got {size_px}.")


def tokens_to_maps(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Return the last `rows * cols` tokens of `(batch, num_tokens, dim)` as maps, `(batch, dim, rows, cols)`."""
    return tokens[:, tokens.shape[1] - rows * cols :].transpose(1, 2).unflatten(2, (rows, cols))
