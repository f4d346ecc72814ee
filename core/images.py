"""Copies of images for publication: their pixels without metadata."""

from __future__ import annotations

from pathlib import Path

from modeling_radio.image_processing_radio import load_upright, open_image_file, to_eight_bits


IMAGE_FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Formats that every browser opens, and the endings of their files' names."""
_KEPT = ("icc_profile", "transparency")
"""Entries of Pillow's `info` that change how pixels are shown; all others, such as EXIF, are dropped."""
_OPTIONS = {"JPEG": {"quality": "keep"}, "PNG": {}, "WEBP": {"quality": 95}}
"""Our choice for WebP, whose quality Pillow cannot read back."""


def copy_image(source: Path, target: Path) -> Path:
    """Write an image anew, upright and without EXIF data (such as the location), comments and the like.

    Args:
        source: An image of any format that is read; formats other than `IMAGE_FORMATS` become PNG.
        target: The file without the end of its name.

    Returns:
        The file.

    Raises:
        Exception: One of `UNREADABLE`, if it is damaged.
    """
    with open_image_file(source) as image:
        load_upright(image)
    kind = str(image.format)
    if kind not in IMAGE_FORMATS:
        kind, image = "PNG", to_eight_bits(image)
    image.info = {name: image.info[name] for name in _KEPT if name in image.info}
    path = target.with_name(target.name + IMAGE_FORMATS[kind])
    image.save(path, kind, **_OPTIONS[kind])
    return path
