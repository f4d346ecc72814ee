"""Curves over steps, resolutions and whatever else is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.files import write_file
from model_cards.results import Measurement
from training.pictures.features import DPI


Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""


def label_panel(axes: Axes, title: str, x_label: str, font_size: int) -> None:
    """Give a panel of curves its title, in the largest letters, its axis, a grid and a legend."""
    axes.set_title(title, fontsize=font_size)
    axes.set_xlabel(x_label, fontsize=font_size - 1)
    axes.tick_params(labelsize=font_size - 2)
    axes.grid(alpha=0.25)
    for text in axes.legend(fontsize=font_size - 2, frameon=False).get_texts():
        text.set_parse_math(False)  # names of models are shown as they are


def _panel_grid(num_panels: int, num_columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a place of so many inches for each panel, row by row; places that are left are empty."""
    num_rows = -(-num_panels // num_columns)
    size = (width * num_columns, height * num_rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in grid[num_panels:]:
        axes.set_axis_off()
    return figure, list(grid[:num_panels])


MAX_COLUMNS = 4


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves, each interpolated where it has no value of its own."""
    steps = sorted({step for own, _ in curves for step in own})
    return steps, np.mean([np.interp(steps, *curve) for curve in curves], axis=0).tolist()


ValuesByCount = dict[int, list[float]]
"""Values, of several seeds or one, by what is counted."""


def draw_over_counts(panels: Mapping[str, Mapping[str, ValuesByCount]], path: Path, counted: str) -> None:
    """Write `figure_over_counts` as a PNG; a reader never sees half of it."""
    write_file(path, figure_over_counts(panels, counted).savefig)


def figure_over_counts(panels: Mapping[str, Mapping[str, ValuesByCount]], counted: str) -> Figure:
    """Return means over seeds with each seed as a dot, over powers of two.

    Args:
        panels: Values by panel title, label and count.
        counted: What is counted, such as "steps".
    """
    figure, grid = _panel_grid(len(panels), min(MAX_COLUMNS, len(panels)), 4.0, 3.0)
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for number, (label, by_count) in enumerate(curves.items()):
            counts = sorted(by_count)
            means = [sum(by_count[count]) / len(by_count[count]) for count in counts]
            axes.plot(counts, means, color=f"C{number}", label=label, linewidth=1.4)
            for count in counts:
                axes.plot([count] * len(by_count[count]), by_count[count], ".", color=f"C{number}", markersize=4)
        ticks = sorted({count for by_count in curves.values() for count in by_count})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(count) for count in ticks])
        axes.minorticks_off()
        label_panel(axes, title, counted, font_size=9)
    return figure


def values_by_size(measurements: Sequence[Measurement]) -> dict[str, dict[str, ValuesByCount]]:
    """Return the cosines of `resolution_consistency` by panel, model and side of the images in pixels."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measurement in measurements:
        if measurement.task == "resolution_consistency":
            sizes, _, suffix = measurement.metric.partition(", ")
            title, size = f"{suffix} cosine".strip(), int(sizes.split()[0])
            by_size = panels.setdefault(title, {}).setdefault(measurement.model, {})
            by_size.setdefault(size, []).append(measurement.value)
    return panels
