"""Images for distillation and evaluation: the demo's own, or the user's in any form that `datasets` reads."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from modeling_radio.core.ranks import first_rank_first
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.arrays import ArrayFolder
from modeling_radio.data.decoding import LeastScale
from modeling_radio.data.image_folder import ImageFolder
from modeling_radio.data.image_table import Images, ImageTable, Split
from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.settings import IMAGE_SOURCES, DataRecipe, SourceRecipe, is_made
from modeling_radio.data.short_sides import large_enough
from modeling_radio.data.sources import is_image_folder, open_table
from modeling_radio.data.weights import weighted_table


RENDER_BATCH = 64  # our choice: images that a worker returns at once


def build_images(
    source: str, *, size: int, num_images: int | None = None, seed: int = 0, split: Split = "train"
) -> Images:
    """Return a map-style data set whose item `index` is a uint8 tensor `(3, size, size)`, RGB.

    Item `index` is a pure function of (source, seed, split, size, index).

    Args:
        source: A name of `IMAGE_SOURCES`: "demo" (images made of what PyPI, npm and Debian packages ship),
            "demo-permissive" (of pictures under CC0, public domain, Apache-2.0 or MIT); the import path of a
            `MadeImages`; or a folder of images, sub-folders included.
        size: Side of the square images, pixels.
        num_images: Length of the data set; None takes the source's own number (9,000 of the demo), or each file of a
            folder once.
        seed: Decides the random images or crops.
        split: "train" or "held_out"; nothing held out is ever seen in training.

    Raises:
        ValueError: If the source is unknown, or holds no usable image.
        PackageError: If the demo's packages cannot be fetched.
    """
    if is_made(source):
        return open_made_images(source).images(size=size, num_images=num_images, seed=seed, split=split)
    if not is_image_folder(source):
        raise ValueError(
            f"Data source {source!r} is neither {' nor '.join(map(repr, IMAGE_SOURCES))} nor an image folder."
        )
    return ImageFolder(Path(source).expanduser(), size=size, num_images=num_images, seed=seed, split=split)


def build_training_images(data: DataRecipe, *, is_square: bool, used_px: int | None = None) -> Images:
    """Return all sources of a recipe as one map-style data set of uint8 tensors `(3, height, width)`, RGB.

    With `data.num_channels` they are float32 in [0, 1], `(num_channels, height, width)`.

    `data.min_side_ratio` has left out some, and `data.weights` repeats some. All ranks must take part: the first one
    fills caches for the others.

    Args:
        data: The recipe's section on images.
        is_square: Crop all images to squares of `data.image_size_px`; otherwise only those that are made, such as the
            demo's, are squares, and the others whole.
        used_px: The smallest resolution that images are used at, pixels; `data.image_size_px` by default.

    Raises:
        ValueError: If a source cannot be opened, or holds no image.
        SettingsError: If no image of a source is large enough.
        PackageError: If the demo's packages cannot be fetched.
    """
    sources = data.sources()
    parts = first_rank_first(lambda: [_build_part(source, data, is_square) for source in sources])
    if data.min_side_ratio is not None:
        tables = [part for part in parts if isinstance(part, ImageTable)]  # all: the recipe refuses others
        least_px = data.image_size_px if used_px is None else used_px
        parts = first_rank_first(lambda: large_enough(tables, data, least_px))
    parts = [weighted_table(part, data.seed) if isinstance(part, ImageTable) else part for part in parts]
    if len(parts) == 1:
        return parts[0]
    # One part after the other, repeated so that lengths are in proportion to weights: the shortest that holds all.
    total = max(len(part) / source.weight for part, source in zip(parts, sources, strict=True))
    return _Mixture(parts, [round(total * source.weight) for source in sources])


def _build_part(source: SourceRecipe, data: DataRecipe, is_square: bool) -> Images:
    if is_made(source.source):
        return build_images(source.source, size=data.image_size_px, num_images=data.num_images, seed=data.seed)
    options: dict[str, Any] = {"num_images": data.num_images, "seed": data.seed}
    options["size"] = data.image_size_px if is_square else None
    if data.num_channels is not None:
        return ArrayFolder(Path(source.source).expanduser(), data.num_channels, data.num_images)
    if is_image_folder(source.source):
        return ImageFolder(Path(source.source).expanduser(), weights=source.weights, **options)
    return ImageTable(open_table(source), **options)


def render(dataset: Images, indices: Sequence[int], *, num_workers: int = 2, show_progress: bool = True) -> Tensor:
    """Render many images with worker processes and a progress bar.

    Args:
        dataset: Images of one size.
        indices: Items, in the order of the result.
        num_workers: Worker processes; 0 renders in this process. The result does not depend on it.
        show_progress: Whether to show the bar.

    Returns:
        uint8 `(len(indices), 3, height, width)`, RGB.

    Raises:
        ValueError: If `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("`indices` must name at least one image, got none.")
    loader = DataLoader(Subset(dataset, indices), batch_size=RENDER_BATCH, num_workers=num_workers)
    images: Tensor | None = None
    position = 0
    with ProgressBar(
        total=len(indices), desc="images", unit="image", disable=not show_progress, leave=False
    ) as progress:
        for batch in loader:
            if images is None:
                images = torch.empty((len(indices), *batch.shape[1:]), dtype=batch.dtype)
            images[position : position + len(batch)] = batch
            position += len(batch)
            progress.update(len(batch))
    assert images is not None
    return images


class _Mixture(Images):
    """Data sets one after the other, each repeated or cut to its length."""

    def __init__(self, parts: list[Images], lengths: list[int]) -> None:
        self.parts, self.ends = parts, list(itertools.accumulate(lengths))
        self.left_out = sum((Counter(part.left_out) for part in parts), Counter())

    def __len__(self) -> int:
        return self.ends[-1]

    def fingerprint(self) -> str:
        """Return the fingerprints of the parts."""
        return "; ".join(part.fingerprint() for part in self.parts)

    def source_of(self, index: int) -> str:
        part, position = self._locate(index)
        return f"{self.parts.index(part)} {part.source_of(position)}"

    def short_sides(self) -> Tensor | None:
        sides = [part.short_sides() for part in self.parts]
        known = [each for each in sides if each is not None]
        if len(known) < len(sides):
            return None
        lengths = [end - start for start, end in itertools.pairwise([0, *self.ends])]
        return torch.cat([each[torch.arange(n) % len(each)] for each, n in zip(known, lengths, strict=True)])

    def __getitem__(self, index: int) -> Tensor:
        part, position = self._locate(index)
        return part[position]

    def draft(self, index: int, least_scale: LeastScale) -> Tensor:
        part, position = self._locate(index)
        return part.draft(position, least_scale)

    def _locate(self, index: int) -> tuple[Images, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}.")
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part], (index - (self.ends[part - 1] if part else 0)) % len(self.parts[part])
