"""Curves over the number of global tokens of RADIO1D."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from foundation.files import write_file
from model_cards.results import Measurement
from training.pictures.curves import label_panel
from training.pictures.features import DPI


TOKEN_TASKS = ("knn_over_tokens", "segmentation_over_tokens", "fidelity_over_tokens")
_METRIC = re.compile(r"(?P<count>\d+) tokens, (?P<metric>.+)")

ValuesByCount = dict[int, list[float]]
"""Values, of several seeds or one, by number of tokens."""


def values_by_tokens(measurements: Sequence[Measurement]) -> dict[str, dict[str, ValuesByCount]]:
    """Return the values by metric, model and number of tokens."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measurement in measurements:
        match = _METRIC.fullmatch(measurement.metric) if measurement.task in TOKEN_TASKS else None
        if match is not None:
            by_count = panels.setdefault(match["metric"], {}).setdefault(measurement.model, {})
            by_count.setdefault(int(match["count"]), []).append(measurement.value)
    return panels


def draw_token_curves(panels: Mapping[str, Mapping[str, ValuesByCount]], path: Path) -> None:
    """Draw means over seeds with each seed as a dot, and write a PNG; a reader never sees half of it.

    Args:
        panels: Values by metric, label and number of tokens.
        path: The PNG to write.
    """
    figure = Figure(figsize=(4.0 * len(panels), 3.0), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
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
        label_panel(axes, title, "global tokens", font_size=9)
    write_file(path, figure.savefig)
