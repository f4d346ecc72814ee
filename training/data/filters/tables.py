"""Tables of images without those that filters leave out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from training.data.filters.rules import choose_images
from training.data.filters.scan import scan
from training.data.image_table import Images, ImageTable
from training.recipe import DataRecipe, RecipeError


def filter_tables(tables: Sequence[ImageTable], data: DataRecipe, used_px: int) -> list[Images]:
    """Return tables without what the filters of a recipe leave out; near duplicates are found across tables.

    Args:
        tables: Of the recipe's sources, in order.
        data: The recipe's section.
        used_px: The smallest resolution that images are used at, pixels.

    Raises:
        RecipeError: If no image of a table is left.
    """
    filters = data.filters
    facts = [scan(table.rows, with_pixels=filters.needs_pixels, num_workers=data.num_workers) for table in tables]
    together = list(itertools.chain.from_iterable(facts))
    numbers, counts = choose_images(together, filters, used_px)
    stops = list(itertools.accumulate(map(len, facts)))
    chosen: list[Images] = []
    for place, (table, stop) in enumerate(zip(tables, stops, strict=True)):
        start = stop - len(facts[place])
        own = [number - start for number in numbers if start <= number < stop]
        if not own:
            raise RecipeError(
                f"`data.filters` must leave an image of {data.sources()[place].source!r}, got {filters.to_dict()}: all "
                f"{stop - start} are left out ({_words(counts)} over all sources)."
            )
        sides = [min(each.height, each.width) for each in (facts[place][number] for number in own) if each is not None]
        left_out = counts if place == 0 else Counter()  # once, of all tables
        chosen.append(table.select(own, sides, left_out))
    return chosen


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
