"""What filters look at: an image's size, how much its colors vary, and a hash that near duplicates share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from training.data.decoding import EncodedImage, check_header, decode_rgb, image_size


THUMBNAIL_PX = 32
"""Side of the square on which deviations are measured. Our choice: grain averages out, and no object does."""

HASH_PX = 8
"""Rows and differences in a row of the hash: 64 bits."""


class ImageFacts(NamedTuple):
    """What filters look at.

    Attributes:
        height: In pixels, upright.
        width: Likewise.
        deviation: Standard deviation of a thumbnail's colors, in levels of 255, of the channel where it is largest; 0
            where pixels were not looked at.
        hash: 64 bits as a signed integer; 0 likewise.
    """

    height: int
    width: int
    deviation: float = 0.0
    hash: int = 0


def measure(image: EncodedImage, *, with_pixels: bool) -> ImageFacts:
    """Return the facts of an image; JPEGs are decoded no larger than the thumbnail needs.

    Args:
        image: The image.
        with_pixels: Whether to look at pixels, or only at the header.

    Raises:
        UnusableImageError: If it is broken or too small to be used.
    """
    check_header(image)
    size = image_size(image)
    if not with_pixels:
        return ImageFacts(*size)
    picture = decode_rgb(image, lambda size: 2 * THUMBNAIL_PX / min(size))
    thumbnail = np.asarray(picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX), dtype=np.float32)
    return ImageFacts(*size, float(thumbnail.std((0, 1)).max()), difference_hash(picture))


def difference_hash(picture: Image.Image) -> int:
    """Return 64 bits: in which of 8 x 8 places of a tiny gray version brightness grows to the right.

    They stay when an image is resized, recompressed, or made brighter. A signed integer, as tensors hold it.

    References:
        N. Krawetz, "Kind of Like That" (dHash), https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html.
        The package `imagehash` has the same few lines, but brings scipy and PyWavelets.
    """
    gray = np.asarray(picture.convert("L").resize((HASH_PX + 1, HASH_PX), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(gray[:, 1:] > gray[:, :-1])
    return int(bits.view(np.int64)[0])
