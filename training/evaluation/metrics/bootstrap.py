"""Confidence intervals by resampling what was measured: images, or whole sources of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from core.seeds import make_generator


LEVEL = 0.95
NUM_RESAMPLES = 1000
"""Of Efron and Tibshirani, An introduction to the bootstrap, 1993, section 13.3: as many as percentiles need."""
_BLOCK = 50


class Interval(NamedTuple):
    """Where a number lies with a probability of `LEVEL`."""

    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[[Tensor], Tensor],
    num_images: int,
    *,
    groups: Tensor | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return the percentile interval of a statistic over resampled images; what they are compared with stays as it is.

    Args:
        statistic: Takes weights `(resamples, num_images)`, how often each image was drawn, float64, and returns the
            number that each resample gives, `(resamples,)`.
        num_images: How many were measured.
        groups: Which images are of one source, `(num_images,)`: sources are drawn, not images. Images of one source
            resemble each other, so that drawing them one by one makes intervals too narrow.
        num_resamples: Draws.
        seed: Of the draws.

    Returns:
        The interval, or None where there are fewer than two sources or the statistic is never defined.
    """
    numbers = torch.arange(num_images) if groups is None else torch.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1 if num_images else 0
    if count < 2:
        return None
    generator = make_generator(seed, "bootstrap")
    values = []
    for start in range(0, num_resamples, _BLOCK):
        size = min(_BLOCK, num_resamples - start)
        drawn = torch.randint(count, (size, count), generator=generator)
        times = torch.zeros(size, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
        values.append(statistic(times[:, numbers]))
    defined = torch.cat(values)
    defined = defined[defined.isfinite()]
    if not len(defined):
        return None
    low, high = defined.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=defined.dtype)).tolist()
    return Interval(low, high)


def mean_interval(
    scores: Tensor, *, groups: Tensor | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the interval of the mean of one score for each image; see `bootstrap_interval`.

    Args:
        scores: `(num_images,)`.
        groups: As there.
        num_resamples: As there.
        seed: As there.
    """
    values = scores.double()
    return bootstrap_interval(
        lambda weights: weights @ values / weights.sum(1),
        len(scores),
        groups=groups,
        num_resamples=num_resamples,
        seed=seed,
    )
