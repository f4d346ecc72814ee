"""Curves over steps and over resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.files import write_file
from model_cards.results import Measurement
from training.pictures.features import DPI


Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""


def draw_curves(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw training curves and write a PNG; a reader never sees half of it.

    Args:
        panels: Curves by label, by panel title.
        path: The PNG to write.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.0), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for label, (steps, values) in curves.items():
            axes.plot(steps, values, label=label, linewidth=1.2)
        # The first steps lie far above all others: cut off, so that the rest can be seen.
        all_values = [value for _, values in curves.values() for value in values]
        axes.set_ylim(0.95 * min(all_values), 1.05 * np.quantile(all_values, 0.95))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    write_file(path, figure.savefig)


ValuesBySize = dict[int, list[float]]
"""One value per seed, by image side in pixels."""


def draw_resolution_consistency(measurements: Sequence[Measurement], reference_px: int, path: Path) -> None:
    """Plot how alike features at each size and at the largest are, one line per model, and write a PNG.

    Args:
        measurements: Of the task "resolution_consistency"; others are passed over. Each seed is a dot, their mean
            the line. Plain and centered cosines have a panel each.
        reference_px: The largest size, with which all are compared.
        path: The PNG to write; a reader never sees half of it.

    Raises:
        ValueError: If none is of that task.
    """
    panels = values_by_size(measurements)
    if not panels:
        raise ValueError("`measurements` must have some of the task 'resolution_consistency', got none. Measure it.")
    figure = Figure(figsize=(4.8 * len(panels), 3.4), dpi=160, facecolor="white", layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_lines(axes, lines)
        axes.set_ylabel(f"{title} with the features at {reference_px} px", fontsize=8)
    write_file(path, figure.savefig)


def values_by_size(measurements: Sequence[Measurement]) -> dict[str, dict[str, ValuesBySize]]:
    """Return the values by panel, model and size."""
    panels: dict[str, dict[str, ValuesBySize]] = {}
    for measurement in measurements:
        if measurement.task == "resolution_consistency":
            sizes, _, suffix = measurement.metric.partition(", ")
            title, size = f"{suffix} cosine".strip(), int(sizes.split()[0])
            by_size = panels.setdefault(title, {}).setdefault(measurement.model, {})
            by_size.setdefault(size, []).append(measurement.value)
    return panels


def _draw_lines(axes: Axes, lines: Mapping[str, ValuesBySize]) -> None:
    for model, by_size in lines.items():
        sizes = sorted(by_size)
        (line,) = axes.plot(sizes, [mean(by_size[size]) for size in sizes], label=model, linewidth=1.4)
        dots = [(size, value) for size in sizes for value in by_size[size]]
        axes.scatter(*zip(*dots, strict=True), s=9, color=line.get_color())
    axes.set_xscale("log", base=2)
    ticks = sorted({size for by_size in lines.values() for size in by_size})
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("image side, pixels", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)
