"""What is seen of image files that data workers have only read: decoded, cut and resized on the run's device.

An NVIDIA GPU decodes JPEGs by nvJPEG, through torchvision. Files that it may not read (other formats, CMYK) arrive as
pixels, decoded by the data workers as everywhere else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from training.data.decoding import MIN_SIDE_PX, EncodedImage, Size, SkippedImages, check_header
from training.recipe import ViewsRecipe
from training.views.on_device.resampling import resize_box
from training.views.regions import Region, Seen, SeenBatch, Sight, look_with


_TURNS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
"""By orientation in EXIF data the quarter turns to the left, and whether the image is mirrored then."""


class JpegFile(NamedTuple):
    """A file that the device decodes.

    Attributes:
        name: Where it comes from, for the log.
        content: Its bytes, `(n,)` uint8.
        orientation: As its EXIF data say.
    """

    name: str
    content: Tensor
    orientation: int


class UnseenImage(NamedTuple):
    """An image, and what is to be seen of it.

    Attributes:
        image: A file, or pixels `(3, height, width)` uint8.
        sight: What is wanted.
    """

    image: JpegFile | Tensor
    sight: Sight


def read_jpeg(image: EncodedImage) -> JpegFile | None:
    """Return a file for the device, or None if it is for the data workers: no JPEG, or none in gray or RGB.

    Raises:
        UnusableImageError: If it is no image, or too small.
    """
    check_header(image, MIN_SIDE_PX)
    content = image.content.read_bytes() if isinstance(image.content, Path) else image.content
    with Image.open(io.BytesIO(content)) as file:
        if file.format != "JPEG" or file.mode not in ("RGB", "L"):
            return None
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    return JpegFile(image.name, torch.frombuffer(bytearray(content), dtype=torch.uint8), orientation)


def see_on_device(
    images: Sequence[UnseenImage], views: ViewsRecipe, device: torch.device, skipped: SkippedImages
) -> SeenBatch:
    """Decode the images of a batch and return what is seen of each, all on a device.

    A file that turns out to be broken is counted, and replaced by the next one of the batch.

    Args:
        images: Of the batch.
        views: The recipe's section.
        device: Of the run.
        skipped: Counts broken images.

    Raises:
        ValueError: If all are broken.
    """
    pixels = _decode([each.image for each in images], device, skipped)
    seen = []
    for place, unseen in enumerate(images):
        found = next((each for each in (*pixels[place:], *pixels[:place]) if each is not None), None)
        if found is None:
            raise ValueError(f"{len(images)} images in a row could not be decoded.")
        seen.append(look_on_device(found, unseen.sight, views))
    return SeenBatch.of(seen)


def look_on_device(image: Tensor, sight: Sight, views: ViewsRecipe) -> Seen:
    """Return what `regions.look` does, up to rounding, on the device of the image, `(3, height, width)` uint8."""
    height, width = image.shape[1:]
    pixels = image.flip(-1) if sight.is_flipped else image  # regions are given in the mirrored image

    def cut(crop: Region, size: Size) -> Tensor:
        bottom, right = min(crop.top + crop.height, height), min(crop.left + crop.width, width)
        return resize_box(pixels, (max(crop.top, 0.0), max(crop.left, 0.0), bottom, right), size)

    return look_with(cut, (height, width), sight, views)


def _decode(images: Sequence[JpegFile | Tensor], device: torch.device, skipped: SkippedImages) -> list[Tensor | None]:
    """Return pixels on a device, None for broken files."""
    files = [image for image in images if isinstance(image, JpegFile)]
    try:
        decoded: list[Tensor | None] = list(_decode_files(files, device))
    except RuntimeError:  # one of them is broken
        decoded = [_decode_one(file, device, skipped) for file in files]
    waiting = iter(decoded)
    return [next(waiting) if isinstance(image, JpegFile) else image.to(device) for image in images]


def _decode_one(file: JpegFile, device: torch.device, skipped: SkippedImages) -> Tensor | None:
    try:
        (pixels,) = _decode_files([file], device)
    except RuntimeError as error:
        skipped.add(file.name, str(error).splitlines()[0])
        return None
    return pixels


def _decode_files(files: Sequence[JpegFile], device: torch.device) -> list[Tensor]:
    if not files:
        return []
    decoded = decode_jpeg([file.content for file in files], mode=ImageReadMode.RGB, device=device)
    return [_upright(pixels, file.orientation) for pixels, file in zip(decoded, files, strict=True)]


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    turned = pixels.rot90(turns, (1, 2))
    return turned.flip(2) if is_mirrored else turned
