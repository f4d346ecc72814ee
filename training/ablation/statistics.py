"""Differences of paired runs with their intervals, and Holm's correction.

Two things are drawn at random, seeds and images, and both must be in an interval. The variance of a mean difference is
the sum of that between seeds over their number, and of that over resampled source pictures (a bootstrap in which all
images of a picture come or stay away together). A run's deviation from the others is in both, so that the sum is rather
too large than too small. Degrees of freedom are Welch's and Satterthwaite's; those of pictures count the pictures that
carry the images (`effective_sources`), not those of which there are one or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.seeds import make_generator


LEVEL = 0.95
NUM_RESAMPLES = 1000
"""Our choice: the standard deviation of as many has an error of 2 %."""


class Difference(NamedTuple):
    """A mean difference over paired seeds.

    Attributes:
        mean: The difference.
        low: Lower end of its interval at `LEVEL`.
        high: Upper end.
        p_value: Two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low > 0 or self.high < 0


def draw_sources(num_sources: int, seed: int = 0) -> Tensor:
    """Return how often each source is drawn, float64 `(NUM_RESAMPLES, num_sources)`."""
    generator = make_generator(seed, "bootstrap")
    drawn = torch.randint(num_sources, (NUM_RESAMPLES, num_sources), generator=generator)
    times = torch.zeros(NUM_RESAMPLES, num_sources, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def effective_sources(weights: Sequence[float]) -> float:
    """Return how many sources of equal weight would leave as little to chance as these.

    A source's part of the variance goes with the square of its weight where its images move together. 14 pictures with
    40 images each and 240 with two count as 15.

    Args:
        weights: Of each source, at least 0, not all 0.

    References:
        Carter, Schnepel, Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", Review of
        Economics and Statistics 99(4), 2017, whose "effective number of clusters" this is for a mean.
    """
    squares = torch.tensor(weights, dtype=torch.float64).square()
    return float(squares.sum().square() / squares.square().sum())


def paired_difference(differences: Sequence[float], resampled: Tensor | None, num_sources: float) -> Difference | None:
    """Return the mean of differences with its interval, None for fewer than two, or if nothing varies at all.

    Args:
        differences: One for each seed.
        resampled: The same on each draw of the sources, `(num_seeds, num_resamples)`; None where images are not drawn,
            so that the interval is of the seeds alone.
        num_sources: Pictures that are drawn, as `effective_sources` counts them.
    """
    from scipy.stats import t as student_t

    count = len(differences)
    if count < 2:
        return None
    values = torch.tensor(differences, dtype=torch.float64)
    of_seeds = values.var().item() / count
    of_sources = 0.0 if resampled is None else resampled.mean(0).var().item()
    mean, variance = values.mean().item(), of_seeds + of_sources
    if variance == 0:
        return None
    freedom = variance**2 / (of_seeds**2 / (count - 1) + of_sources**2 / max(num_sources - 1, 1))
    error = variance**0.5
    margin = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
