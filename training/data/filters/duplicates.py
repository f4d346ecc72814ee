"""Near duplicates by the distance of their hashes, without comparing each image with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise


HASH_BITS = 64
_MASK = (1 << HASH_BITS) - 1


def near_duplicates(hashes: Mapping[int, int], order: Iterable[int], max_distance: int) -> list[int]:
    """Return the images that have a near duplicate among those that come before them and stay.

    A hash is cut into one band more than bits may differ, so two that are near agree in some band: only images that do
    are compared.

    Args:
        hashes: 64 bits of each image, by its number.
        order: Numbers of all images: those to keep rather than others come first.
        max_distance: Bits in which two near duplicates differ at most.
    """
    edges = [HASH_BITS * band // (max_distance + 1) for band in range(max_distance + 2)]
    bands = [(start, (1 << (stop - start)) - 1) for start, stop in pairwise(edges)]
    kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    duplicates = []
    for image in order:
        bits = hashes[image] & _MASK
        keys = [(bits >> start) & mask for start, mask in bands]
        if any(_is_near(bits, group[key], max_distance) for group, key in zip(kept, keys, strict=True) if key in group):
            duplicates.append(image)
            continue
        for group, key in zip(kept, keys, strict=True):
            group[key].append(bits)
    return duplicates


def _is_near(bits: int, others: Iterable[int], max_distance: int) -> bool:
    return any((bits ^ other).bit_count() <= max_distance for other in others)
