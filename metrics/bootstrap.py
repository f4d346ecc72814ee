"""Confidence intervals by resampling the measured images, or whole sources of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_radio.core.seeds import make_generator


LEVEL = 0.95
NUM_RESAMPLES = 1000
"""As many as percentiles need: Efron and Tibshirani, An introduction to the bootstrap, 1993, section 13.3."""
MOST_BIAS = 0.25
"""Bias, in standard errors, that may be left uncorrected: Efron and Tibshirani, section 10.3."""
_BLOCK = 50


class Interval(NamedTuple):
    """Bounds of a number at the confidence `LEVEL`."""

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
    """Return the interval of a statistic over resampled test images, as `bootstrap_intervals` has it.

    The images that test images are compared with stay as they are.

    Args:
        statistic: Takes weights `(resamples, num_images)`, the float64 counts of each image in each draw, and returns
            the number of each resample, `(resamples,)`.
        num_images: Number of test images.
        groups: Source of each image, `(num_images,)`; whole sources are drawn. Images of one source resemble each
            other, so that intervals over single images are too narrow. For pairs of images it has the sources of both,
            `(num_pairs, 2)`: a pair counts as often as the product of the counts of its two sources. This includes the
            dependence of pairs that share a source; the interval is too wide rather than too narrow (A. B. Owen, The
            pigeonhole bootstrap, 2007, https://arxiv.org/abs/0712.1111).
        num_resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        The interval, or None where there are fewer than two sources or the statistic is never defined.
    """
    return bootstrap_intervals(
        lambda weights: {"": statistic(weights)}, num_images, groups=groups, num_resamples=num_resamples, seed=seed
    ).get("")


def bootstrap_intervals(
    statistics: Callable[[Tensor], Mapping[str, Tensor]],
    num_images: int,
    *,
    groups: Tensor | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Interval]:
    """Return the intervals of several statistics over the same draws, by name.

    Some statistics are higher or lower on resamples than on the images themselves. COCO's precision takes the largest
    value at any higher recall, and a calibration error takes absolute values; noise raises both, and resamples, which
    have some images several times, have more noise. Where the mean of the resamples differs from the number by more
    than `MOST_BIAS` standard errors, the interval is shifted by this difference: it has the spread of the resamples
    around the number.

    Arguments are those of `bootstrap_interval`, and:

    Args:
        statistics: Takes weights and returns the numbers of each resample by name, `(resamples,)` each.
        num_images: Number of test images.
        groups: Sources.
        num_resamples: Number of draws.
        seed: Seed of the draws.
        limits: Smallest and largest possible number: a shifted interval ends there.

    Returns:
        The intervals; those for which `bootstrap_interval` returns None are left out.

    References:
        Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 10 (estimates of bias).
    """
    numbers = torch.arange(num_images) if groups is None else torch.unique(groups, return_inverse=True)[1]
    numbers = numbers.reshape(num_images, -1)
    count = int(numbers.max()) + 1 if num_images else 0
    if count < 2:
        return {}
    generator = make_generator(seed, "bootstrap")
    values: dict[str, list[Tensor]] = {}
    for start in range(0, num_resamples, _BLOCK):
        size = min(_BLOCK, num_resamples - start)
        drawn = torch.randint(count, (size, count), generator=generator)
        times = torch.zeros(size, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
        for name, found in statistics(times[:, numbers].prod(-1)).items():
            values.setdefault(name, []).append(found)
    once = statistics(torch.ones(1, num_images, dtype=torch.float64))
    joined = {name: torch.cat(found) for name, found in values.items()}
    return {
        name: _interval_of(found[found.isfinite()], float(once[name]), limits)
        for name, found in joined.items()
        if found.isfinite().any()
    }


def _interval_of(values: Tensor, number: float, limits: tuple[float, float]) -> Interval:
    low, high = values.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)).tolist()
    bias = float(values.mean()) - number
    if abs(bias) > MOST_BIAS * float(values.std(correction=0)):  # never where the number is NaN
        low, high = max(low - bias, limits[0]), min(high - bias, limits[1])
    return Interval(low, high)


def mean_interval(
    scores: Tensor, *, groups: Tensor | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the interval of the mean of scores, one for each image, `(num_images,)`; see `bootstrap_interval`."""
    values = scores.double()
    return bootstrap_interval(
        lambda weights: weights @ values / weights.sum(1),
        len(scores),
        groups=groups,
        num_resamples=num_resamples,
        seed=seed,
    )
