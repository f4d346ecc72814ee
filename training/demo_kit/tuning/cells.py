"""Numbers of several seeds as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev


NOTHING = "-"


def spread(values: Sequence[float]) -> str:
    """Return a mean, and with several values their standard deviation."""
    if not values:
        return NOTHING
    return f"{mean(values):.3f}" + (f" +- {stdev(values):.3f}" if len(values) > 1 else "")


def difference(values: Sequence[float]) -> str:
    """Return the mean of paired differences, and with several its standard error."""
    if not values:
        return NOTHING
    return f"{mean(values):+.3f}" + (f" +- {stdev(values) / sqrt(len(values)):.3f}" if len(values) > 1 else "")
