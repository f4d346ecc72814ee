"""Curves over counts of pixels or tokens: what is measured at each, by model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from model_cards.results import Measurement
from training.pictures.features import DPI


TOKEN_TASKS = ("knn_over_tokens", "segmentation_over_tokens", "fidelity_over_tokens")
TOKENS = "global tokens"
PIXELS = "image side, pixels"
MAX_COLUMNS = 4
PANEL_INCHES = (4.0, 3.0)
_TOKEN_METRIC = re.compile(r"(?P<count>\d+) tokens, (?P<metric>.+)")
ValuesByCount = dict[int, list[float]]
"""Values, of several seeds or one, by what is counted."""


def figure_over_counts(panels: Mapping[str, Mapping[str, ValuesByCount]], counted: str) -> Figure:
    """Return means over seeds with each seed as a dot, over powers of two.

    Args:
        panels: Values by panel title, label and count.
        counted: What is counted, such as "steps".
    """
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    size = (PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
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
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(counted, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        for text in axes.legend(fontsize=7, frameon=False).get_texts():
            text.set_parse_math(False)  # names of models are shown as they are
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


def values_by_tokens(measurements: Sequence[Measurement]) -> dict[str, dict[str, ValuesByCount]]:
    """Return the values by metric, model and number of tokens."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measurement in measurements:
        match = _TOKEN_METRIC.fullmatch(measurement.metric) if measurement.task in TOKEN_TASKS else None
        if match is not None:
            by_count = panels.setdefault(match["metric"], {}).setdefault(measurement.model, {})
            by_count.setdefault(int(match["count"]), []).append(measurement.value)
    return panels
