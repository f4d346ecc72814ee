"""Looking once at all images of a data set, and keeping what was seen for the next run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foundation.files import write_file
from foundation.interruption import ignore_stop_signals
from foundation.machine.timing import ProgressBar
from foundation.settings import hash_of
from training.data.decoding import UnusableImageError
from training.data.filters.facts import ImageFacts, measure
from training.data.image_table import EncodedRows


ROOT = Path("runs") / "cache" / "image_facts"
IMAGES_PER_BATCH = 64
"""Images that a worker measures before it reports. Our choice."""


def scan(rows: EncodedRows, *, with_pixels: bool, num_workers: int) -> list[ImageFacts | None]:
    """Return the facts of all images, None for unusable ones; read where an earlier run kept them below `runs/cache`.

    Args:
        rows: The images.
        with_pixels: Whether to decode them, or only to read their headers.
        num_workers: Processes that look at them.
    """
    path = ROOT / f"{hash_of({'rows': rows.fingerprint(), 'with_pixels': with_pixels})[:16]}.safetensors"
    facts = _read(path, len(rows))
    if facts is None:
        facts = _measure_all(rows, with_pixels, num_workers)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda scratch: save_file(_tensors_of(facts), scratch))
    return facts


def _measure_all(rows: EncodedRows, with_pixels: bool, num_workers: int) -> list[ImageFacts | None]:
    loader = DataLoader(
        _Measured(rows, with_pixels),
        batch_size=IMAGES_PER_BATCH,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=ignore_stop_signals,
    )
    facts: list[ImageFacts | None] = []
    with ProgressBar(total=len(rows), desc="filters", unit="image") as bar:
        for batch in loader:
            facts += batch
            bar.update(len(batch))
    return facts


class _Measured(Dataset[ImageFacts | None]):
    def __init__(self, rows: EncodedRows, with_pixels: bool) -> None:
        self.rows, self.with_pixels = rows, with_pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageFacts | None:
        try:
            return measure(self.rows[index], with_pixels=self.with_pixels)
        except UnusableImageError:
            return None


def _tensors_of(facts: Sequence[ImageFacts | None]) -> dict[str, Tensor]:
    """Return facts as columns; unusable images have no height."""
    known = [ImageFacts(0, 0) if each is None else each for each in facts]
    return {
        "sizes": torch.tensor([[each.height, each.width] for each in known], dtype=torch.int32).view(-1, 2),
        "deviations": torch.tensor([each.deviation for each in known], dtype=torch.float64),
        "hashes": torch.tensor([each.hash for each in known], dtype=torch.int64),
    }


def _read(path: Path, num_images: int) -> list[ImageFacts | None] | None:
    """Return kept facts; None where there are none, or not of so many images."""
    try:
        columns = load_file(path)
    except (OSError, SafetensorError):
        return None
    if {len(column) for column in columns.values()} != {num_images}:
        return None
    rows = zip(columns["sizes"].tolist(), columns["deviations"].tolist(), columns["hashes"].tolist(), strict=True)
    return [ImageFacts(size[0], size[1], deviation, bits) if size[0] else None for size, deviation, bits in rows]
