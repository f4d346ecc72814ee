"""Copies of images for publication: their pixels without metadata."""

from __future__ import annotations

from pathlib import Path

from modeling_radio.image_processing_radio import load_upright, open_picture, to_eight_bits


PICTURE_FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Formats that every browser opens, and the endings of their files' names."""
_KEPT = ("icc_profile", "transparency")
"""Entries of Pillow's `info` that change how pixels are shown; all others, such as EXIF, are dropped."""
_OPTIONS = {"JPEG": {"quality": "keep"}, "PNG": {}, "WEBP": {"quality": 95}}
"""Our choice for WebP, whose quality Pillow cannot read back."""


def copy_picture(source: Path, target: Path) -> Path:
    """Write an image anew, upright and without EXIF data (such as the place), comments and the like.

    Args:
        source: An image of any format that is read; formats other than `PICTURE_FORMATS` become PNG.
        target: The file without the end of its name.

    Returns:
        The file.

    Raises:
        Exception: One of `UNREADABLE`, if it is damaged.
    """
    with open_picture(source) as picture:
        load_upright(picture)
    kind = str(picture.format)
    if kind not in PICTURE_FORMATS:
        kind, picture = "PNG", to_eight_bits(picture)
    picture.info = {name: picture.info[name] for name in _KEPT if name in picture.info}
    path = target.with_name(target.name + PICTURE_FORMATS[kind])
    picture.save(path, kind, **_OPTIONS[kind])
    return path
