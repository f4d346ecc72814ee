"""Paired differences with their intervals, one panel for each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.files import write_file
from training.pictures.features import DPI


class Line(NamedTuple):
    """One line of a panel.

    Attributes:
        label: What is compared.
        dots: One difference for each seed.
        interval: Mean, lower and upper end; None where it has none.
    """

    label: str
    dots: Sequence[float]
    interval: tuple[float, float, float] | None


def draw_differences(panels: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Draw intervals around mean differences, each seed as a dot, zero as a line, and write a PNG.

    Args:
        panels: Lines by title, each with the same labels.
        path: The PNG to write; a reader never sees half of it.
    """
    rows = max(len(lines) for lines in panels.values())
    size = (2.0 + 2.9 * len(panels), 1.1 + 0.42 * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        _draw(axes, lines)
        axes.set_title(title, fontsize=8)
    write_file(path, figure.savefig)


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    axes.axvline(0, color="0.6", linewidth=0.8)
    for row, line in enumerate(lines):
        axes.scatter(line.dots, [row + 0.22] * len(line.dots), s=7, color="0.55")
        if line.interval is not None:
            mean, low, high = line.interval
            axes.errorbar(
                [mean], [row], xerr=[[mean - low], [high - mean]], fmt="o", markersize=4, capsize=3, color="C0"
            )
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", alpha=0.25)
