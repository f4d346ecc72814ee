"""Plots of measured results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from model_cards.results import Measurement
from training.files import write_file


def draw_resolution_consistency(measurements: Sequence[Measurement], reference_px: int, path: Path) -> None:
    """Plot how alike features at each size and at the largest are, one line per model, and write a PNG.

    Args:
        measurements: Of the task "resolution_consistency"; others are passed over. Each seed is a dot, their mean
            the line.
        reference_px: The largest size, with which all are compared.
        path: The PNG to write; a reader never sees half of it.
    """
    values: dict[str, dict[int, list[float]]] = {}
    for measurement in measurements:
        if measurement.task == "resolution_consistency":
            size = int(measurement.metric.split()[0])
            values.setdefault(measurement.model, {}).setdefault(size, []).append(measurement.value)
    figure = Figure(figsize=(5.2, 3.4), dpi=160, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for model, by_size in values.items():
        sizes = sorted(by_size)
        (line,) = axes.plot(sizes, [mean(by_size[size]) for size in sizes], label=model, linewidth=1.4)
        dots = [(size, value) for size in sizes for value in by_size[size]]
        axes.scatter(*zip(*dots, strict=True), s=9, color=line.get_color())
    axes.set_xscale("log", base=2)
    sizes = sorted({size for by_size in values.values() for size in by_size})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("image side, pixels", fontsize=8)
    axes.set_ylabel(f"cosine with the features at {reference_px} px", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)
    write_file(path, figure.savefig)
