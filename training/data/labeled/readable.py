"""Leaves out images whose file is none, before training starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from training.data.decoding import EncodedImage, SkippedImages
from training.data.labeled.layouts import Tables


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def readable_tables(tables: Tables) -> Tables:
    """Return tables without the images whose file cannot be opened; each is named in the log, and their number.

    Only the first bytes of files are looked at, and nothing of images that lie in the table itself.

    Args:
        tables: By split, images in the column `image`.

    Raises:
        ValueError: If a split has no other images.
    """
    skipped = SkippedImages()
    return {split: _readable_table(table, split, skipped) for split, table in tables.items()}


def _readable_table(table: Dataset, split: str, skipped: SkippedImages) -> Dataset:
    kept = [index for index, path in enumerate(image_paths(table, "image")) if _is_readable(path, skipped)]
    if len(kept) == len(table):
        return table
    if not kept:
        raise ValueError(f"None of the {len(table)} {split} images can be opened; the log names them.")
    logger.warning("left out %d of %d %s images, which cannot be opened", len(table) - len(kept), len(table), split)
    return cast("Dataset", table.select(kept))


def image_paths(table: Dataset, column: str) -> list[str | None]:
    """Return the files of the images in a column; None where the table itself has the image, or there is none.

    The images that lie in the table are not read, which may be many gigabytes.
    """
    from datasets import Image

    if not isinstance(table.features[column], Image):
        return [None] * len(table)
    paths: list[str | None] = []
    for chunk in table.data.column(column).chunks:
        is_there = zip(chunk.field("path").to_pylist(), chunk.field("bytes").is_null().to_pylist(), strict=True)
        paths += [path if is_alone else None for path, is_alone in is_there]
    order = table._indices
    return paths if order is None else [paths[row] for row in order.column(0).to_pylist()]


def _is_readable(path: str | None, skipped: SkippedImages) -> bool:
    return path is None or skipped.check(EncodedImage(path, Path(path)), min_side_px=1)
