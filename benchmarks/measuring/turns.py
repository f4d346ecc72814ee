"""Times calls that take turns in one run: disturbances meet all of them, and ratios are those of one round."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import torch

from foundation.machine.timing import Name


MIN_ROUNDS = 5
BUDGET_SECONDS = 8.0
"""Our choice: enough rounds for a stable median at every size."""


class Spread(NamedTuple):
    """Median and quartiles of one number over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread_of(numbers: list[float]) -> Spread:
    """Return the median and the quartiles of some numbers; of one it is all three."""
    if len(numbers) == 1:
        return Spread(*3 * numbers)
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Turns(Generic[Name]):
    """What calls took in turns.

    Attributes:
        seconds: By name one number for each round.
    """

    seconds: Mapping[Name, list[float]]

    def milliseconds(self, name: Name) -> float:
        """Return the median over the rounds, rounded to four digits."""
        return float(f"{1000 * statistics.median(self.seconds[name]):.4g}")

    def times_as_fast(self, name: Name, other: Name) -> Spread:
        """Return how many times as fast as another a call is: the ratio of each round."""
        return spread_of([theirs / own for own, theirs in zip(self.seconds[name], self.seconds[other], strict=True)])


def take_turns(
    calls: Mapping[Name, Callable[[], Any]],
    *,
    min_rounds: int = MIN_ROUNDS,
    budget_seconds: float = BUDGET_SECONDS,
    device: str | torch.device = "cpu",
    warm_up: bool = True,
) -> Turns[Name]:
    """Run calls one after the other, round after round, every other round in reverse. Of a GPU each is waited for.

    Args:
        calls: What to time, by name.
        min_rounds: Rounds, at least.
        budget_seconds: Go on with further rounds until so much time is over.
        device: Where they run.
        warm_up: Whether to run a round before, which sets kernels up and does not count.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for call in calls.values() if warm_up else ():
        call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order, began, rounds = list(calls), time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - began < budget_seconds:
        for name in order:
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
        rounds += 1
    return Turns(seconds)
