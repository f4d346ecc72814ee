"""From the bytes of an image file to RGB pixels, and fingerprints of images by content.

A file that cannot be used is skipped, counted and named in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from modeling_radio.core.settings import hash_of
from modeling_radio.image_processing_radio import UNREADABLE, load_upright, open_image_file, to_eight_bits


logger = logging.getLogger(__name__)

MAX_SAMPLES = 1000
"""Images of a fingerprint whose content is read, evenly spaced. Our choice: a second or two of reading, whatever their
number. The sizes of all images are part of it too, and hardly any change of an image keeps its size in bytes."""

SAMPLE_BYTES = 65_536
"""Bytes that are read at the beginning and at the end of each. Our choice."""

MIN_SIDE_PX = 32
"""Our choice: below two patches of 16 there is nothing for a dense teacher to see."""

MAX_NAMED_SKIPS = 1000
"""Our choice: after as many, the log names every thousandth, so that a poor data set does not flood it."""

_TURNED = (5, 6, 7, 8)
"""Orientations in EXIF data that stand for a quarter turn."""

ImageSize = tuple[int, int]
"""Height and width in pixels."""

LeastScale = Callable[[ImageSize], float]
"""From an image's size to the smallest factor by which its sides may be reduced; 1 or more for none."""

DRAFT_GAP = 2.0
"""Smallest factor between a part of a draft and what it is resized to. Pillow's own choice for thumbnails
(`reducing_gap`): the resizing then smooths far more than the draft did."""


class UnusableImageError(ValueError):
    """An image that is broken or too small; the message says which."""


class EncodedImage(NamedTuple):
    """An image file.

    Attributes:
        name: Its origin, for the log: a path, or a shard and a key.
        content: The file's bytes, or its path.
    """

    name: str
    content: bytes | Path


def content_fingerprint(
    image_at: Callable[[int], EncodedImage], num_bytes: Sequence[int], names: Sequence[str] = ()
) -> str:
    """Return a hash of the sizes of images, of their names if they have some, and of a sample of their contents.

    Args:
        image_at: Returns an image by number; only those of the sample are asked for.
        num_bytes: The size of each.
        names: Their names, without the folder that they lie in.
    """
    state = hashlib.sha256(hash_of({"sizes": list(num_bytes), "names": list(names)}).encode())
    num_samples = min(len(num_bytes), MAX_SAMPLES)
    for sample in range(num_samples):
        state.update(hashlib.sha256(_ends(image_at(sample * len(num_bytes) // num_samples))).digest())
    return state.hexdigest()[:16]


def _ends(image: EncodedImage) -> bytes:
    """Return the beginning and the end of an image file, or all of a short one."""
    if isinstance(image.content, Path):
        with image.content.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
            file.seek(max(file.seek(0, 2) - SAMPLE_BYTES, len(head)))
            return head + file.read()
    return image.content[:SAMPLE_BYTES] + image.content[max(len(image.content) - SAMPLE_BYTES, SAMPLE_BYTES) :]


def check_header(image: EncodedImage, min_side_px: int = MIN_SIDE_PX) -> int:
    """Read the first bytes of an image, without decoding it; return the length of its shorter side in pixels.

    Raises:
        UnusableImageError: If it is no image, or a side is below `min_side_px`.
    """
    with _opened(image, min_side_px) as file:
        return min(file.size)


def image_size(image: EncodedImage) -> ImageSize:
    """Return the height and width of an image in pixels, upright as its EXIF data say, without decoding it.

    Raises:
        UnusableImageError: If it is no image.
    """
    with _opened(image, min_side_px=1) as file:
        return _upright_size(file)


def decode_rgb(
    image: EncodedImage, least_scale: LeastScale | None = None, *, smallest_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Decode an image to RGB, upright as its EXIF data say, on white where it is transparent.

    Args:
        image: Any mode and depth of one of `FORMATS`; 16 bits are reduced to 8.
        least_scale: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, if that is not less than
            what the function returns for its height and width; None decodes it in full.
        smallest_px: Images with a side below this are too small.

    Raises:
        UnusableImageError: If it is broken or too small.
    """
    with _opened(image, smallest_px) as file:
        if least_scale is not None and file.format == "JPEG":
            scale = least_scale(_upright_size(file))
            width, height = file.size
            file.draft("RGB", (math.ceil(scale * width), math.ceil(scale * height)))
        return to_eight_bits(load_upright(file))


def load_image(image: EncodedImage) -> Image.Image:
    """Decode an image in the mode that it is stored in, upright as its EXIF data say: a mask, or for a processor.

    Raises:
        UnusableImageError: If it is broken.
    """
    with _opened(image, min_side_px=1) as file:
        return load_upright(file)


@contextlib.contextmanager
def _opened(image: EncodedImage, min_side_px: int) -> Iterator[Image.Image]:
    """Open an image; what Pillow raises until it is closed becomes an `UnusableImageError`."""
    path = image.content
    try:
        if isinstance(path, Path) and path.exists() and not path.is_file():  # opening may never end
            raise UnusableImageError("no file with content, but a folder, pipe, socket or device")
        if path == b"":
            raise UnusableImageError("no image in this sample")
        with open_image_file(path) as file:
            if min(file.size) < min_side_px:
                raise UnusableImageError(f"too small: {file.width} x {file.height} px")
            yield file
    except UnusableImageError:
        raise
    except UNREADABLE as error:
        kind = "too large" if isinstance(error, Image.DecompressionBombError) else "unreadable"
        raise UnusableImageError(f"{kind}: {error}") from error


def _upright_size(file: Image.Image) -> ImageSize:
    """Return height and width as the EXIF data say."""
    exif, (width, height) = file.getexif(), file.size
    if file.format == "TIFF":  # newer versions of Pillow turn the size of a TIFF when they open it
        width, height = exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength]
    is_turned = exif.get(ExifTags.Base.Orientation, 1) in _TURNED
    return (width, height) if is_turned else (height, width)


class SkippedImages:
    """Counts the images that cannot be used over all data workers of this process, and names them in the log."""

    def __init__(self) -> None:
        self._count = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return self._count.value

    def check(self, image: EncodedImage, min_side_px: int = MIN_SIDE_PX) -> bool:
        """Return whether the header of an image says that it can be used; if not, count and log it."""
        try:
            check_header(image, min_side_px)
        except UnusableImageError as error:
            self.add(image.name, error)
            return False
        return True

    def decode(
        self, image: EncodedImage, least_scale: LeastScale | None = None, *, smallest_px: int = MIN_SIDE_PX
    ) -> Image.Image | None:
        """Decode an image as `decode_rgb` does; if it cannot be used, count and log it and return None."""
        try:
            return decode_rgb(image, least_scale, smallest_px=smallest_px)
        except UnusableImageError as error:
            self.add(image.name, error)
            return None

    def add(self, name: str, reason: object) -> None:
        """Count a skipped image and log why."""
        with self._count.get_lock():
            self._count.value += 1
            count = self._count.value
        if count <= MAX_NAMED_SKIPS or count % MAX_NAMED_SKIPS == 0:
            logger.warning("skipping image %s: %s (%d skipped so far)", name, reason, count)


def crop_to_shape(rgb: Image.Image, height: int, width: int) -> Image.Image:
    """Return the largest centered crop of the shape, resized to `height` x `width` pixels."""
    scale = min(rgb.width / width, rgb.height / height)
    crop_width, crop_height = width * scale, height * scale
    left, top = (rgb.width - crop_width) / 2, (rgb.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return rgb.resize((width, height), Image.Resampling.BICUBIC, box=box)


def to_tensor(rgb: Image.Image) -> Tensor:
    """Return an RGB image as a uint8 tensor `(3, height, width)`."""
    pixels = np.array(rgb, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
