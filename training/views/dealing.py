"""Dealing of a step's images to ranks, parts and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import groupby, pairwise

import torch

from modeling_radio.checks_radio import round_to_step
from modeling_radio.core.seeds import make_generator
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError
from modeling_radio.training.recipes.sections import AUTO
from modeling_radio.training.views.shapes import ImageShape, images_per_step


DEALING = "by shape"
"""Version of the rule that deals images of packs to ranks and passes. Checkpoints store it: a run keeps its rule."""
FEW_IMAGES = 4
"""Images of a rank in the mean below which its share of a pack is a run of shapes, which the last pack evens out. Our
choice: with more, equal shares have few shapes, too, and passes need equally much memory."""
CUT_BISECTIONS = 30
"""Halvings of the bounds of a run's cost. Our choice: what is left of them is less than a token."""


def deal_teachers(
    partition: PartitionRecipe, teachers: Sequence[str], shapes: Sequence[ImageShape], seed: int, step: int
) -> dict[str, set[int]] | None:
    """Return by teacher the rows of the images of a step that it sees; None if each sees all.

    Images take turns in the order of their shapes, beginning at a teacher that the step draws. So numbers of images
    differ by at most one between teachers, of each shape as well, whatever the ranks and parts.
    """
    number = partition.teachers_per_image
    if number is None:
        return None
    generator = make_generator(seed, "teachers_per_image", partition.name, step)
    turn = int(torch.randint(len(teachers), (), generator=generator))
    seen: dict[str, set[int]] = {name: set() for name in teachers}
    for row in sorted(range(len(shapes)), key=lambda row: (shapes[row], row)):
        for place in range(turn, turn + number):
            seen[teachers[place % len(teachers)]].add(row)
        turn += number
    return seen


def parts_of_rank(partition: PartitionRecipe, num_ranks: int, patch_size: int) -> int:
    """Return in how many parts each of a partition's ranks computes its share, at most one for each image in the mean.

    Args:
        partition: The partition.
        num_ranks: Number of its ranks.
        patch_size: The student's patch in pixels.
    """
    steps = partition.accumulation_steps
    assert steps != AUTO, "a number is chosen before images are dealt"
    return max(1, min(steps, images_per_step(partition, patch_size) // num_ranks))


def cut_evenly(number: int, num_parts: int) -> list[range]:
    """Return the indices of each part of a sequence that is cut into parts of equal length, up to one."""
    edges = [number * part // num_parts for part in range(num_parts + 1)]
    return [range(*edge) for edge in pairwise(edges)]


def cut_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape], num_parts: int) -> list[list[int]]:
    """Cut images in the order of their shapes, the dearest first, into runs; the dearest run is as cheap as possible.

    Costs of the parts differ by up to an image of each part, which later images even out.

    Args:
        costs: Cost of each image, equal for equal shapes.
        shapes: Its shape.
        num_parts: Number of parts, of which the last ones may be empty.

    Returns:
        Indices of the images of each part.
    """
    order = [row for rows in _rows_by_shape(costs, shapes) for row in rows]

    def runs(limit: float) -> list[list[int]]:
        found, cost = [[order[0]]], costs[order[0]]
        for row in order[1:]:
            cost += costs[row]
            if cost > limit:
                found.append([])
                cost = costs[row]
            found[-1].append(row)
        return found

    low, high = max(costs), sum(costs)
    for _ in range(CUT_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(runs(middle)) <= num_parts else (middle, high)
    found = runs(high)
    return [*found, *([] for _ in range(num_parts - len(found)))]


def share_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape], loads: Sequence[float]) -> list[list[int]]:
    """Divide images into parts that cost about the same, and of few shapes.

    One part after the other, that with the most room first, is filled up to the cost of all parts in the mean: with as
    many images as fit of the dearest shape that is left, then of the dearest one that fits into the rest. Images that
    fit nowhere go one by one to the part that has least.

    Args:
        costs: Cost of each image, in tokens or operations, equal for equal shapes.
        shapes: Its shape.
        loads: Cost that each part has already.

    Returns:
        Indices of the images of each part.
    """
    left, mean = _rows_by_shape(costs, shapes), _water_level(loads, sum(costs))
    parts, filled = [[] for _ in loads], list(loads)
    for part in sorted(range(len(loads)), key=lambda part: (loads[part], part)):
        for rows in left:
            fitting = max(0, int((mean - filled[part]) / costs[rows[0]])) if rows else 0
            parts[part] += rows[:fitting]
            filled[part] += sum(costs[row] for row in rows[:fitting])
            del rows[:fitting]
    emptiest_first = [(load, part) for part, load in enumerate(filled)]
    heapify(emptiest_first)
    for row in (row for rows in left for row in rows):
        load, part = emptiest_first[0]
        parts[part].append(row)
        heapreplace(emptiest_first, (load + costs[row], part))
    return parts


def _rows_by_shape(costs: Sequence[float], shapes: Sequence[ImageShape]) -> list[list[int]]:
    """Return the indices of the images of each shape, those of the dearest shape first."""
    order = sorted(range(len(costs)), key=lambda row: (-costs[row], shapes[row], row))
    return [list(rows) for _, rows in groupby(order, key=lambda row: shapes[row])]


def _water_level(loads: Sequence[float], cost: float) -> float:
    """Return up to which cost all parts below it are filled if they share `cost`."""
    level = 0.0
    for number, load in enumerate(sorted(loads), 1):
        if number > 1 and load >= level:
            break
        cost += load
        level = cost / number
    return level


def divide_ranks(partitions: Sequence[PartitionRecipe], num_ranks: int) -> dict[str, range]:
    """Return the ranks that run each partition.

    Partitions with a `rank_share` divide the ranks among them, in order; the others, and all of them in a single
    process, run on every rank.

    Args:
        partitions: The recipe's partitions.
        num_ranks: Number of ranks.

    Raises:
        RecipeError: If the number of ranks is no multiple of the sum of the shares.
    """
    total = sum(partition.rank_share or 0 for partition in partitions)
    if num_ranks == 1 or total == 0:
        return {partition.name: range(num_ranks) for partition in partitions}
    if num_ranks % total:
        raise RecipeError(
            f"`partitions` with a `rank_share` must have a number of ranks that is 1 or a multiple of {total}, got "
            f"{num_ranks}. Use {round_to_step(num_ranks, total)} ranks, or other shares."
        )
    ranks, start = {}, 0
    for partition in partitions:
        if partition.rank_share is None:
            ranks[partition.name] = range(num_ranks)
        else:
            stop = start + partition.rank_share * num_ranks // total
            ranks[partition.name] = range(start, stop)
            start = stop
    return ranks


def teachers_of_rank(recipe: Recipe, rank: int, num_ranks: int) -> list[str]:
    """Return the names of the teachers that a rank runs: those of its partitions, or all to fill a feature cache."""
    names = [entry.name for entry in recipe.teachers]
    if recipe.views.teachers == "cached":
        return names
    ranks = divide_ranks(recipe.partitions, num_ranks)
    own = [partition for partition in recipe.partitions if rank in ranks[partition.name]]
    return [name for name in names if any(name in (partition.teachers or names) for partition in own)]


def check_teachers_per_image(recipe: Recipe, partition: PartitionRecipe, patch_size: int) -> None:
    """Refuse steps in which a teacher sees no image, where each image is shown to some of the teachers.

    Raises:
        RecipeError: If a step has too few images.
    """
    count, number = partition.teachers_per_image, images_per_step(partition, patch_size)
    if count is not None and number * count < len(partition.teachers or recipe.teachers):
        raise RecipeError(
            f"`partitions.{partition.name}.teachers_per_image` must be null with as few images in a step as {number}, "
            f"of which a teacher may see none, got {count}."
        )
