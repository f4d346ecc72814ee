"""Filters: images that are too small, too narrow, of one color or near duplicates of others are left out of a run.

The facts that filters need are measured once for each image and kept in the cache folder; the choice depends on them
alone.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modeling_radio.core.files import cache_dir, write_file
from modeling_radio.core.settings import hash_of
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, check_header, decode_rgb, image_size
from modeling_radio.data.image_table import EncodedRows, Images, ImageTable
from modeling_radio.training.recipes.recipe import DataRecipe, RecipeError
from modeling_radio.training.recipes.sections import FiltersRecipe


THUMBNAIL_PX = 32
"""Side of the square on which deviations are measured. Our choice: grain averages out, and no object does."""

HASH_PX, HASH_BITS = 8, 64
"""Rows of the hash, and differences in a row; both together make its bits."""

IMAGES_PER_BATCH = 64
"""Images that a worker measures before it reports. Our choice."""

UNUSABLE, SMALL, NARROW, UNIFORM, DUPLICATE = "unusable", "too small", "too narrow", "of one color", "near duplicate"
"""Reasons to leave out an image, in the order of the checks."""


class ImageFacts(NamedTuple):
    """The facts of an image that filters need.

    Attributes:
        height: In pixels, upright.
        width: In pixels, upright.
        deviation: Standard deviation of a thumbnail's colors, in levels of 255, of the channel where it is largest; 0
            where pixels were not read.
        hash: 64 bits as a signed integer; 0 where pixels were not read.
    """

    height: int
    width: int
    deviation: float = 0.0
    hash: int = 0


def filter_tables(tables: Sequence[ImageTable], data: DataRecipe, used_px: int) -> list[Images]:
    """Return tables without the images that the filters of a recipe leave out; near duplicates count across tables.

    Args:
        tables: The tables of the recipe's sources, in order.
        data: The recipe's section.
        used_px: The smallest resolution that images are used at, pixels.

    Raises:
        RecipeError: If no image of a table is left.
    """
    filters = data.filters
    facts = [scan(table.rows, with_pixels=filters.needs_pixels, num_workers=data.num_workers) for table in tables]
    numbers, counts = choose_images(list(itertools.chain.from_iterable(facts)), filters, used_px)
    chosen: list[Images] = []
    stop = 0
    for table, own_facts, source in zip(tables, facts, data.sources(), strict=True):
        start, stop = stop, stop + len(own_facts)
        own = [number - start for number in numbers if start <= number < stop]
        if not own:
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise RecipeError(
                f"`data.filters` must leave an image of {source.source!r}, got {filters.to_dict()}: all "
                f"{stop - start} are left out ({reasons} over all sources)."
            )
        sides = [min(each.height, each.width) for each in (own_facts[number] for number in own) if each is not None]
        chosen.append(table.select(own, sides, Counter() if chosen else counts))  # the counts are of all tables
    return chosen


def fault_of(facts: ImageFacts | None, filters: FiltersRecipe, used_px: int) -> str | None:
    """Return the reason to leave out an image by itself, or None.

    Args:
        facts: The image's facts; None for one that is broken or too small to be used at all.
        filters: The recipe's section.
        used_px: The resolution that it is used at, pixels.
    """
    if facts is None:
        return UNUSABLE
    short, long = sorted((facts.height, facts.width))
    if filters.min_side_ratio is not None and short < filters.min_side_ratio * used_px:
        return SMALL
    if filters.max_aspect is not None and long > filters.max_aspect * short:
        return NARROW
    if filters.min_deviation is not None and facts.deviation < filters.min_deviation:
        return UNIFORM
    return None


def choose_images(
    facts: Sequence[ImageFacts | None], filters: FiltersRecipe, used_px: int
) -> tuple[list[int], Counter[str]]:
    """Return the numbers of the images that stay, in order, and how many are left out for each reason.

    Near duplicates are searched among the images that no other filter leaves out; of several the one with the most
    pixels stays, or the first. The choice depends on the facts alone, so it is the same on all ranks and after a
    restart.

    Args:
        facts: Facts of all images; None for unusable ones.
        filters: The recipe's section.
        used_px: The smallest resolution that images are used at, pixels.
    """
    faults = {number: fault_of(each, filters, used_px) for number, each in enumerate(facts)}
    if filters.max_distance is not None:
        stay = {number: each for number, each in enumerate(facts) if each is not None and faults[number] is None}
        order = sorted(stay, key=lambda number: (-stay[number].height * stay[number].width, number))
        hashes = {number: each.hash for number, each in stay.items()}
        faults |= dict.fromkeys(near_duplicates(hashes, order, filters.max_distance), DUPLICATE)
    counts = Counter(fault for fault in faults.values() if fault is not None)
    return [number for number, fault in faults.items() if fault is None], counts


def near_duplicates(hashes: Mapping[int, int], order: Iterable[int], max_distance: int) -> list[int]:
    """Return the images that have a near duplicate among those that come before them and stay.

    A hash is cut into one band more than bits may differ, so two near ones agree in some band: only images that agree
    in a band are compared.

    Args:
        hashes: 64 bits of each image, by its number.
        order: Numbers of all images: those to keep rather than others come first.
        max_distance: Bits in which two near duplicates differ at most.
    """
    edges = [HASH_BITS * band // (max_distance + 1) for band in range(max_distance + 2)]
    bands = [(start, (1 << (stop - start)) - 1) for start, stop in itertools.pairwise(edges)]
    kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    duplicates = []
    for image in order:
        bits = hashes[image] & ((1 << HASH_BITS) - 1)
        groups = [group[(bits >> start) & mask] for group, (start, mask) in zip(kept, bands, strict=True)]
        if any((bits ^ other).bit_count() <= max_distance for group in groups for other in group):
            duplicates.append(image)
            continue
        for group in groups:
            group.append(bits)
    return duplicates


def measure(image: EncodedImage, *, with_pixels: bool) -> ImageFacts:
    """Return the facts of an image; JPEGs are decoded no larger than the thumbnail needs.

    Args:
        image: The image.
        with_pixels: Whether to decode the image, or only to read its header.

    Raises:
        UnusableImageError: If it is broken or too small to be used.
    """
    check_header(image)
    size = image_size(image)
    if not with_pixels:
        return ImageFacts(*size)
    rgb = decode_rgb(image, lambda size: 2 * THUMBNAIL_PX / min(size))
    thumbnail = np.asarray(rgb.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX), dtype=np.float32)
    return ImageFacts(*size, float(thumbnail.std((0, 1)).max()), difference_hash(rgb))


def difference_hash(rgb: Image.Image) -> int:
    """Return 64 bits, the pixels of an 8 x 8 gray version where brightness grows to the right, as a signed integer.

    They stay the same when an image is resized, recompressed, or made brighter.

    References:
        N. Krawetz, "Kind of Like That" (dHash), https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html.
        The package `imagehash` has the same few lines, but brings scipy and PyWavelets.
    """
    gray = np.asarray(rgb.convert("L").resize((HASH_PX + 1, HASH_PX), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(gray[:, 1:] > gray[:, :-1])
    return int(bits.view(np.int64)[0])


def scan(rows: EncodedRows, *, with_pixels: bool, num_workers: int) -> list[ImageFacts | None]:
    """Return the facts of all images, None for unusable ones; an earlier run may have kept them in the cache folder.

    Args:
        rows: The images.
        with_pixels: Whether to decode them, or only to read their headers.
        num_workers: Number of processes that measure them.
    """
    name = hash_of({"rows": rows.fingerprint(), "with_pixels": with_pixels})[:16]
    path = cache_dir() / "image_facts" / f"{name}.safetensors"
    facts = _read_facts(path, len(rows))
    if facts is None:
        facts = []
        dataset = _MeasuredImages(rows, with_pixels)
        loader = DataLoader(dataset, batch_size=IMAGES_PER_BATCH, num_workers=num_workers, collate_fn=list)
        with ProgressBar(total=len(rows), desc="filters", unit="image") as bar:
            for batch in loader:
                facts += batch
                bar.update(len(batch))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda scratch: save_file(_tensors_of(facts), scratch))
    return facts


class _MeasuredImages(Dataset[ImageFacts | None]):
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


def _read_facts(path: Path, num_images: int) -> list[ImageFacts | None] | None:
    """Return kept facts; None if there are none, or of another number of images."""
    try:
        columns = load_file(path)
    except (OSError, SafetensorError):
        return None
    if {len(column) for column in columns.values()} != {num_images}:
        return None
    rows = zip(columns["sizes"].tolist(), columns["deviations"].tolist(), columns["hashes"].tolist(), strict=True)
    return [ImageFacts(size[0], size[1], deviation, bits) if size[0] else None for size, deviation, bits in rows]
