"""Curves of a run in progress, and of measurements by number of pixels or tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from modeling_radio.core.files import write_file
from modeling_radio.figures.features import DPI
from modeling_radio.figures.style import INK, on_any_background
from modeling_radio.metrics.results import Measurement


TOKEN_TASKS = ("knn_over_tokens", "segmentation_over_tokens", "fidelity_over_tokens")
WIDTH_TASKS = ("knn_over_widths", "segmentation_over_widths")
TOKENS = "global tokens"
CHANNELS = "channels of the features"
PIXELS = "image side, pixels"
MAX_COLUMNS = 4
CURVE_INCHES = (4.0, 3.0)
_COUNTED_METRIC = re.compile(r"(?P<count>\d+) (?:tokens|channels), (?P<metric>.+)")
ValuesByCount = dict[int, list[float]]
"""Values of one or several seeds, by a count such as steps or tokens."""


@on_any_background
def figure_over_counts(panels: Mapping[str, Mapping[str, ValuesByCount]], counted: str) -> Figure:
    """Draw means over seeds as lines and each seed as a dot, over a logarithmic axis.

    Args:
        panels: Values by panel title, label and count.
        counted: Label of the axis, such as "steps".
    """
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    size = (CURVE_INCHES[0] * num_columns, CURVE_INCHES[1] * num_rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
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
            text.set_parse_math(False)  # a $ in a name starts no formula
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


def values_by_tokens(
    measurements: Sequence[Measurement], tasks: Sequence[str] = TOKEN_TASKS
) -> dict[str, dict[str, ValuesByCount]]:
    """Return the values by metric, model and number of tokens, or with `WIDTH_TASKS` of channels."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measurement in measurements:
        match = _COUNTED_METRIC.fullmatch(measurement.metric) if measurement.task in tasks else None
        if match is not None:
            by_count = panels.setdefault(match["metric"], {}).setdefault(measurement.model, {})
            by_count.setdefault(int(match["count"]), []).append(measurement.value)
    return panels


Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""

LOWER, HIGHER = "lower is better", "higher is better"


class Panel(NamedTuple):
    """Content of a panel.

    Attributes:
        title: Above it.
        better: `LOWER`, `HIGHER`, or empty where neither direction is better.
        meaning: One sentence for readers of the page.
    """

    title: str
    better: str = ""
    meaning: str = ""

    @property
    def explanation(self) -> str:
        """One line that explains the panel."""
        ending = f" {self.better.capitalize()}." if self.better else ""
        return f"{self.title}: {self.meaning}{ending}"


LOSSES = {
    "features": Panel("dense loss", LOWER, "distance of each patch from the teacher's, in training."),
    "summary": Panel("summary loss", LOWER, "distance of the image's summary from the teacher's, in training."),
    "contrastive": Panel("contrastive loss", LOWER, "how hard a summary finds its own teacher's among others."),
    "mesa": Panel("MESA loss", LOWER, "distance of the student from its moving average."),
}
TAP_LOSSES = {
    "tap_features": Panel("dense loss of taps", LOWER, "dense loss of adaptors on intermediate blocks."),
    "tap_summary": Panel("summary loss of taps", LOWER, "summary loss of adaptors on intermediate blocks."),
}
WEIGHTS = {
    "weight/features": Panel("weight of dense losses", "", "share of each teacher in the sum."),
    "weight/summary": Panel("weight of summary losses", "", "share of each teacher in the sum."),
}
"""Groups of teachers' weights, as `modeling_radio.training.balancing.weighting` names them."""

OF_BACKBONE = {
    "fixed_pattern": Panel(
        "fixed-pattern energy", LOWER, "share of the features that depends on the position alone, whatever the image."
    ),
    "shift_error": Panel("shift error", LOWER, "change of the features where the image moves by a few pixels."),
    "effective_rank": Panel("effective rank", HIGHER, "number of dimensions that the features use."),
    "consistency_centered": Panel(
        "consistency over sizes", HIGHER, "centered cosine of the features with those of the largest size."
    ),
}
OF_ADAPTORS = {
    "dense_fidelity": Panel("dense fidelity, cosine", HIGHER, "agreement of patches with the teacher's."),
    "dense_fidelity_centered": Panel(
        "dense fidelity, centered cosine", HIGHER, "the same about the teacher's mean: a constant prediction has 0."
    ),
    "summary_fidelity": Panel("summary fidelity, cosine", HIGHER, "agreement of summaries with the teacher's."),
    "summary_fidelity_centered": Panel(
        "summary fidelity, centered cosine", HIGHER, "the same about the teacher's mean: a constant prediction has 0."
    ),
}
OF_LABELS = {
    "knn": Panel("kNN accuracy", HIGHER, "share of labeled images whose nearest neighbors have their class."),
}
MEASURED = OF_BACKBONE | OF_LABELS | OF_ADAPTORS
PANELS = LOSSES | TAP_LOSSES | WEIGHTS | MEASURED
"""All panels in their order."""
EXPORTED_PREFIX = "student/"
"""Prefix of measurements of the student itself, where it is exported instead of its moving average."""

PROGRESS_COLUMNS = 2
"""Our choice: two panels side by side can be read on a phone."""
PANEL_INCHES = (3.1, 2.3)
THIN_LINES = "Thin: the student itself, which is exported; the others: its moving average."
LINE_STYLES = ("-", "--", ":", "-.")
NARROW_TICKS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
WIDE_TICKS = (1.0, 2.0, 5.0)
SHOWN_SHARE = 0.95
"""Share of a loss's values below the upper edge: the first steps are far above all others. Our choice."""


class MeasuredCurve(NamedTuple):
    """One curve of a measurement.

    Attributes:
        size_px: Side of the images.
        teacher: Teacher whose adaptor is measured; empty for the backbone.
        curve: Steps and values.
        is_thin: Whether it measures the student beside its moving average.
    """

    size_px: int
    teacher: str
    curve: Curve
    is_thin: bool


@on_any_background
def draw_progress(series: Mapping[str, Curve], path: Path) -> None:
    """Draw a run's losses and measurements over its steps and write a PNG atomically.

    A loss is drawn as the mean over the resolutions, each with equal weight, whichever of them an interval had. Dense
    and summary losses share one logarithmic scale.

    Args:
        series: By name, as `HeldOutMetrics` and `LossesBySize` name them; others are ignored.
        path: The PNG to write.
    """
    losses = {kind: curves for kind in LOSSES | TAP_LOSSES if (curves := loss_curves(series, kind))}
    by_teacher = losses | {group: curves for group in WEIGHTS if (curves := _in_group(series, group))}
    measured = {name: curves for name in MEASURED if (curves := _measured(series, name))}
    names = [name for name in PANELS if name in by_teacher or name in measured]
    if not names:
        return
    colors = _colors_of_teachers(by_teacher, measured)
    sizes = sorted({curve.size_px for curves in measured.values() for curve in curves}, reverse=True)
    num_columns = min(PROGRESS_COLUMNS, len(names))
    num_rows = -(-len(names) // num_columns)
    inches = (PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows + 0.4)
    figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    drawn: dict[str, Axes] = dict(zip(names, grid, strict=False))
    for name, axes in drawn.items():
        if name in by_teacher:
            _draw_by_teacher(axes, by_teacher[name], colors)
        else:
            _draw_measured(axes, measured[name], colors, sizes)
        _finish(axes, PANELS[name], has_legend=name in measured or name in TAP_LOSSES)
    for kinds in (("features", "summary"), ("contrastive",), ("mesa",), tuple(TAP_LOSSES)):
        panels = [drawn[kind] for kind in kinds if kind in losses]
        _share_scale(panels, [curve for kind in kinds for curve in losses.get(kind, {}).values()])
    _name_teachers(figure, colors)
    if any(curve.is_thin for curves in measured.values() for curve in curves):
        figure.supxlabel(THIN_LINES, fontsize=7)
    write_file(path, figure.savefig)


def loss_curves(series: Mapping[str, Curve], kind: str) -> dict[str, Curve]:
    """Return a loss by teacher, as the mean over all resolutions where it was recorded by resolution.

    Args:
        series: By name.
        kind: A key of `LOSSES` or `TAP_LOSSES`; teachers are then those of taps, `TEACHER@BLOCK`.
    """
    finite = {name: curve for name, each in series.items() if (curve := _finite(each))[0]}
    plain = {name.partition("/")[2]: curve for name, curve in finite.items() if name.partition("/")[0] == kind}
    by_size: dict[str, list[Curve]] = {}
    for name, curve in finite.items():
        if re.fullmatch(rf"{kind}@\d+px(/.*)?", name):
            by_size.setdefault(name.partition("/")[2], []).append(curve)
    return plain | {teacher: mean_curve(curves) for teacher, curves in by_size.items()}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves, each interpolated at the steps of the others."""
    steps = sorted({step for own, _ in curves for step in own})
    return steps, np.mean([np.interp(steps, *curve) for curve in curves], axis=0).tolist()


def _in_group(series: Mapping[str, Curve], group: str) -> dict[str, Curve]:
    """Return the curves named `GROUP/NAME`, by name."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): curve for name, curve in series.items() if name.startswith(prefix)}


def _finite(curve: Curve) -> Curve:
    """Return a curve without values that are not finite: an interval with a skipped step has no mean."""
    points = [(step, value) for step, value in zip(*curve, strict=True) if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]


def _measured(series: Mapping[str, Curve], metric: str) -> list[MeasuredCurve]:
    """Return the curves of one metric in the order of teachers and sizes."""
    found = []
    for name, curve in series.items():
        match = re.fullmatch(rf"({EXPORTED_PREFIX})?{metric}/(?:(.+)/)?(\d+)px", name)
        if match is not None:
            found.append(MeasuredCurve(int(match[3]), match[2] or "", curve, is_thin=match[1] is not None))
    return found


def _colors_of_teachers(
    losses: Mapping[str, Mapping[str, Curve]], measured: Mapping[str, Sequence[MeasuredCurve]]
) -> dict[str, str]:
    """Return the color of each teacher in all panels; curves of no teacher are gray."""
    names = [teacher for curves in losses.values() for teacher in curves]
    names += [curve.teacher for curves in measured.values() for curve in curves]
    teachers = list(dict.fromkeys(name.partition("@")[0] for name in names if name))
    return {"": INK} | {teacher: f"C{position}" for position, teacher in enumerate(teachers)}


def _draw_by_teacher(axes: Axes, curves: Mapping[str, Curve], colors: Mapping[str, str]) -> None:
    blocks = sorted({int(block) for name in curves if (block := name.partition("@")[2])})
    for name, (steps, values) in curves.items():
        teacher, _, block = name.partition("@")
        style = LINE_STYLES[blocks.index(int(block)) % len(LINE_STYLES)] if block else "-"
        axes.plot(steps, values, label=name or None, color=colors[teacher], linestyle=style, linewidth=1.2)


def _draw_measured(
    axes: Axes, curves: Sequence[MeasuredCurve], colors: Mapping[str, str], sizes: Sequence[int]
) -> None:
    """Draw a curve for each size, of adaptors for each teacher (color) and size (style), with a legend of sizes."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, len(sizes)))
    for size, teacher, (steps, values), is_thin in curves:
        position = sizes.index(size)
        color, style = (
            (colors[teacher], LINE_STYLES[position % len(LINE_STYLES)]) if teacher else (shades[position], "-")
        )
        width, marker = (0.5, 1) if is_thin else (1.2, 2)
        axes.plot(steps, values, color=color, linestyle=style, linewidth=width, marker="o", markersize=marker)
    for size in sorted({curve.size_px for curve in curves}, reverse=True):
        position = sizes.index(size)
        color, style = (INK, LINE_STYLES[position % len(LINE_STYLES)]) if curves[0].teacher else (shades[position], "-")
        axes.plot([], [], label=f"{size} px", color=color, linestyle=style, linewidth=1.2)


def _finish(axes: Axes, panel: Panel, *, has_legend: bool) -> None:
    axes.set_title(panel.title, fontsize=9)
    arrow = {LOWER: "\N{LEFTWARDS ARROW} {}", HIGHER: "{} \N{RIGHTWARDS ARROW}"}.get(panel.better, "{}")
    axes.set_ylabel(arrow.format(panel.better), fontsize=8)  # turned by a quarter: left is down
    axes.set_xlabel("step", fontsize=8)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if has_legend:
        axes.legend(fontsize=7, frameon=False)


def _name_teachers(figure: Figure, colors: Mapping[str, str]) -> None:
    """Write the color of each teacher above all panels."""
    lines = [Line2D([], [], color=color, label=name) for name, color in colors.items() if name]
    if lines:
        legend = figure.legend(handles=lines, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a $ in a name starts no formula


def _share_scale(panels: Sequence[Axes], curves: Sequence[Curve]) -> None:
    """Give the panels of losses one logarithmic scale, or a linear one if a value has no logarithm."""
    if not panels:
        return
    lowest = min(min(values) for _, values in curves)
    highest = max(float(np.quantile(values, SHOWN_SHARE, method="lower")) for _, values in curves)
    for axes in panels:
        if lowest > 0:
            axes.set_yscale("log")
            is_narrow = highest < 4 * lowest  # our choice: as many labels as there is room for
            axes.yaxis.set_major_locator(LogLocator(subs=NARROW_TICKS if is_narrow else WIDE_TICKS))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.95 * lowest, 1.05 * highest)
