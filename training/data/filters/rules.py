"""Which images the filters of a recipe leave out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from training.data.filters.duplicates import near_duplicates
from training.data.filters.facts import ImageFacts
from training.recipe_sections.filters import FiltersRecipe


UNUSABLE, SMALL, NARROW, UNIFORM, DUPLICATE = "unusable", "too small", "too narrow", "of one color", "near duplicate"
"""Why images are left out, in the order that is looked for it."""


def fault_of(facts: ImageFacts | None, filters: FiltersRecipe, used_px: int) -> str | None:
    """Return why an image is left out by itself, or None.

    Args:
        facts: Of the image; None for one that is broken or too small to be used at all.
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

    Near duplicates are looked for among those that no other filter leaves out; of such the one with the most pixels
    stays, or the first. The choice depends on the facts alone, so it is the same on all ranks and after a restart.

    Args:
        facts: Of all images; None for unusable ones.
        filters: The recipe's section.
        used_px: The smallest resolution that images are used at, pixels.
    """
    faults = {number: fault_of(each, filters, used_px) for number, each in enumerate(facts)}
    stay = {number: facts[number] for number, fault in faults.items() if fault is None}
    if filters.max_distance is not None:
        sizes = {number: each.height * each.width for number, each in stay.items() if each is not None}
        hashes = {number: each.hash for number, each in stay.items() if each is not None}
        order = sorted(sizes, key=lambda number: (-sizes[number], number))
        faults |= dict.fromkeys(near_duplicates(hashes, order, filters.max_distance), DUPLICATE)
    counts = Counter(fault for fault in faults.values() if fault is not None)
    return [number for number, fault in faults.items() if fault is None], counts
