"""The shorter sides of images, by which those that are too small are left out of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from modeling_radio.core.files import cache_dir, write_file
from modeling_radio.core.settings import SettingsError, hash_of
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.decoding import UnusableImageError, check_header
from modeling_radio.data.image_table import EncodedRows, Images, ImageTable
from modeling_radio.data.settings import DataRecipe


IMAGES_PER_BATCH = 64
"""Images that a worker measures before it reports. Our choice."""

UNUSABLE, SMALL = "unusable", "too small"
"""Reasons to leave out an image."""


def large_enough(tables: Sequence[ImageTable], data: DataRecipe, used_px: int) -> list[Images]:
    """Return tables without images that are broken, or smaller than a recipe wants them.

    Args:
        tables: The tables of the recipe's sources, in order.
        data: The recipe's section, with a `min_side_ratio`.
        used_px: The smallest resolution that images are used at, pixels.

    Raises:
        SettingsError: If no image of a table is left.
    """
    assert data.min_side_ratio is not None  # the caller has asked
    least = data.min_side_ratio * used_px
    chosen: list[Images] = []
    for table, source in zip(tables, data.sources(), strict=True):
        sides = scan(table.rows, num_workers=data.num_workers)
        counts = Counter(SMALL if side else UNUSABLE for side in sides if side < least)
        own = [number for number, side in enumerate(sides) if side >= least]
        if not own:
            raise SettingsError(
                f"`data.min_side_ratio` must leave an image of {source.source!r}, got {data.min_side_ratio}: of its "
                f"{len(sides)} images the largest has {max(sides)} px, {least:.0f} are needed."
            )
        chosen.append(table.select(own, [sides[number] for number in own], counts))
    return chosen


def scan(rows: EncodedRows, *, num_workers: int) -> list[int]:
    """Return the shorter sides of all images, 0 for unusable ones; an earlier run may have kept them in the cache.

    Args:
        rows: The images.
        num_workers: Number of processes that read their headers.
    """
    path = cache_dir() / "short_sides" / f"{hash_of({'rows': rows.fingerprint()})[:16]}.safetensors"
    sides = _read(path, len(rows))
    if sides is None:
        sides = []
        loader = DataLoader(_ShortSides(rows), batch_size=IMAGES_PER_BATCH, num_workers=num_workers, collate_fn=list)
        with ProgressBar(total=len(rows), desc="sizes", unit="image") as bar:
            for batch in loader:
                sides += batch
                bar.update(len(batch))
        kept = torch.tensor(sides, dtype=torch.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda scratch: save_file({"sides": kept}, scratch))
    return sides


class _ShortSides(Dataset[int]):
    def __init__(self, rows: EncodedRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        try:
            return check_header(self.rows[index])
        except UnusableImageError:
            return 0


def _read(path: Path, num_images: int) -> list[int] | None:
    """Return kept sides; None if there are none, or of another number of images."""
    try:
        sides = load_file(path)["sides"].tolist()
    except (OSError, KeyError, SafetensorError):
        return None
    return sides if len(sides) == num_images else None
