"""Photographs that visitors give: read as they are shown, and refused in one clear sentence where they cannot be."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from modeling_radio.image_processing_radio import RadioImageProcessor


MAX_PIXELS = 100_000_000
"""Of a photograph; our choice, above what cameras give, and 300 MB of memory."""


Image.init()
FORMATS = sorted({"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys())
"""That are read; Pillow knows more, one of which (EPS) it lets Ghostscript run as a program."""


def read_photograph(path: str | Path | None, processor: RadioImageProcessor) -> Tensor:
    """Return an image file as uint8 RGB `(3, height, width)`, turned as its camera says.

    Args:
        path: The file; None if none was chosen.
        processor: Reads palettes, transparency and 16 bits as for the model.

    Raises:
        ValueError: If there is none, or it is no image, is damaged or too large.
    """
    if path is None:
        raise ValueError("`image` must be a photograph, got none. Choose one first.")
    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"`image` must have at most {MAX_PIXELS // 1_000_000} megapixels, got {width} x {height}. Make it "
                    "smaller first: the model sees a smaller one anyway."
                )
            turned = ImageOps.exif_transpose(opened)
            turned.load()
    except (
        LookupError,
        OSError,
        SyntaxError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:  # what Pillow raises on broken files
        raise ValueError(
            f"`image` must be a picture in a format such as JPEG, PNG or WebP, got {path.name!r}, which cannot be read."
        ) from error
    return processor.process_image(turned, do_convert_rgb=True).round().to(torch.uint8)
