"""Curves over resolution as shapes that the page draws, in colors that suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model_cards.results import Measurement
from training.pictures.curves import values_by_size


WIDTH, HEIGHT = 420.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 34.0
NUM_TICKS = 5


@dataclass(frozen=True)
class Line:
    """One model's curve: its name, the number of its color, points as SVG has them, and the values as text."""

    name: str
    color: int
    points: Sequence[tuple[float, float]]
    values: str


@dataclass(frozen=True)
class Chart:
    """Curves of several models over the images' side.

    Attributes:
        title: What is drawn.
        lines: One for each model.
        x_ticks: Place and label of the sizes.
        y_ticks: Place and label of the values.
    """

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def resolution_charts(measurements: Sequence[Measurement]) -> list[Chart]:
    """Return a chart of each kind of cosine of the task `resolution_consistency`; none where it was not measured."""
    return [_chart(f"{title[:1].upper()}{title[1:]}", lines) for title, lines in values_by_size(measurements).items()]


def _chart(title: str, lines: dict[str, dict[int, list[float]]]) -> Chart:
    means = {model: {size: sum(each) / len(each) for size, each in sizes.items()} for model, sizes in lines.items()}
    sizes = sorted({size for by_size in means.values() for size in by_size})
    values = [value for by_size in means.values() for value in by_size.values()]
    low, high = min(0.0, *values), 1.0
    log_span = math.log(sizes[-1] / sizes[0]) or 1.0

    def place_x(size: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(size / sizes[0]) / log_span, 1)

    def place_y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    drawn = [
        Line(
            model,
            number,
            [(place_x(size), place_y(by_size[size])) for size in sorted(by_size)],
            ", ".join(f"{size} px {by_size[size]:.3f}" for size in sorted(by_size)),
        )
        for number, (model, by_size) in enumerate(means.items())
    ]
    steps = [low + (high - low) * step / (NUM_TICKS - 1) for step in range(NUM_TICKS)]
    return Chart(
        title, drawn, [(place_x(size), str(size)) for size in sizes], [(place_y(each), f"{each:.2f}") for each in steps]
    )
