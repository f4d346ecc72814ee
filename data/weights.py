"""Weights of images: how often an image is shown in relation to the others.

A table repeats its images. A stream decides for each image and pass how often it comes, from a hash of its name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.image_table import ImageTable


MAX_PASSES = 16
"""Our choice: a table of numbers has at most so many passes; an image that is still rarer is in it by chance."""


def weighted_table(table: ImageTable, seed: int) -> ImageTable:
    """Return a table in which each image stands in proportion to its weight, in an order that the seed decides.

    Args:
        table: The images; those without weights come as they are.
        seed: Decides which images stand once more than others of equal weight.

    Raises:
        ValueError: If a weight is no number of at least 0, or none is above 0.
    """
    texts = table.rows.weights()
    if texts is None:
        return table
    weights = np.array([weight_of(text, f"row {row}") for row, text in enumerate(texts)])
    if not weights.any():
        raise ValueError(f"`data.weights` must be above 0 for some image, got 0 for all {len(weights)}.")
    return table.repeated(draw(weights / weights.mean(), derive_seed(seed, "weights")).tolist())


def weight_of(text: Any, name: str) -> float:
    """Return a weight as it is written with an image.

    Args:
        text: The number, or its text.
        name: Name of the image, for the message.

    Raises:
        ValueError: If it is no number of at least 0.
    """
    try:
        weight = float(text)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"`data.weights` must hold numbers of at least 0, got {text!r:.50} for {name}.")
    return weight


def num_copies(weight: float, number_of_pass: int, seed: int, key: str) -> int:
    """Return how often an image is shown in a pass, its weight up to one; all passes together differ by no more.

    Args:
        weight: Its frequency: it is shown as often in a pass on average.
        number_of_pass: Number of the pass, from 0.
        seed: Decides with the key in which passes it is shown once more.
        key: Its name.
    """
    start = derive_seed(seed, "copies", key) / 2**63
    return math.floor(weight * (number_of_pass + 1) + start) - math.floor(weight * number_of_pass + start)


def draw(weights: np.ndarray, seed: int) -> np.ndarray:
    """Return numbers of images, each as often as its weight says, up to one, by systematic sampling.

    There are as many passes as the rarest image needs to stand in one of them, at most `MAX_PASSES`.

    Args:
        weights: `(num_images,)`, on average 1.
        seed: Decides the order, and which images stand once more.
    """
    num_passes = int(np.clip(np.ceil(1 / weights[weights > 0].min()), 1, MAX_PASSES))
    random = np.random.default_rng(seed)
    order = random.permutation(len(weights))  # neighbors in the data are often alike
    ends = np.cumsum(weights[order]) * (num_passes * len(weights) / weights.sum())
    counts = np.diff(np.floor(ends + random.random()).astype(np.int64), prepend=0)
    return np.repeat(order, counts)[random.permutation(counts.sum())]
