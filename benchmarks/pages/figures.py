"""Figures of stored results: latency, memory and cosine over the size of the image."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from PIL import Image

from benchmarks.contenders.registry import OURS
from benchmarks.measuring.machine import file_name_of
from benchmarks.measuring.results import Result
from foundation.files import write_file
from training.pictures.curves import Curve, label_panel


PICTURES = Path(__file__).parents[2] / "docs" / "pictures" / "benchmarks"
SOURCE = "Source"
"""Entry of a PNG that says which rows it was drawn from."""
Panels = Mapping[str, Mapping[str, Curve]]
"""Curves by label, by panel title."""


class Drawing(NamedTuple):
    """One kind of figure.

    Attributes:
        panels_of: What is drawn of a result.
        quantity: What stands on the vertical axis.
        is_logarithmic: Whether both axes are.
    """

    panels_of: Callable[[Result], Panels]
    quantity: str
    is_logarithmic: bool


def latency(result: Result) -> Panels:
    """Return milliseconds over image sides by contender, a panel for each data type and batch."""
    panels: dict[str, dict[str, Curve]] = {}
    for row in result.rows:
        title = f"{row['dtype']}, one image" if row["batch"] == 1 else f"{row['dtype']}, ms per image of a full batch"
        _add(panels, title, row["contender"], row["size_px"], row["ms"] / row["batch"])
    return panels


def memory(result: Result) -> Panels:
    """Return MB over image sides by contender."""
    panels: dict[str, dict[str, Curve]] = {}
    for row in result.rows:
        for column, value in row.items():
            if column.endswith(" px, MB"):
                _add(panels, row["dtype"], row["contender"], int(column.split()[0]), value)
    return panels


def cosine(result: Result) -> Panels:
    """Return cosines over image sides by way to run."""
    panels: dict[str, dict[str, Curve]] = {}
    for row in result.rows:
        _add(panels, f"student {result.subject}", row["way"], row["size_px"], row["cosine"])
    return panels


DRAWINGS: dict[str, Drawing] = {
    "inference_speed": Drawing(latency, "ms", True),
    "inference_memory": Drawing(memory, "MB, weights included", False),
    "inference_fidelity": Drawing(cosine, "cosine with float32, global attention", False),
}
"""By program."""


def figure_of(result: Result) -> Path:
    """Return where a result's figure stands."""
    return PICTURES / f"{result.program}_{result.subject}_{file_name_of(dict(result.machine))}.png"


def build_figure(result: Result) -> Figure:
    """Return a result's figure."""
    drawing = DRAWINGS[result.program]
    panels = drawing.panels_of(result)
    figure = Figure(figsize=(4.6 * len(panels), 3.8), dpi=100, facecolor="white", layout="constrained")
    colors = colormaps["tab20"].colors
    colors = [*colors[::2], *colors[1::2]]  # ten strong ones, then ten light ones
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (label, (sizes, values)), color in zip(curves.items(), colors, strict=False):
            is_ours = label.startswith(OURS)
            axes.plot(sizes, values, marker="o", markersize=3, linewidth=2 if is_ours else 1, label=label, color=color)
        _scale(axes, sorted({size for sizes, _ in curves.values() for size in sizes}), drawing)
        label_panel(axes, title, "image side, px", font_size=9)
        axes.set_ylabel(drawing.quantity, fontsize=8)
    return figure


def draw(result: Result, path: Path) -> None:
    """Write a result's figure; a reader never sees half of it."""
    figure, metadata = build_figure(result), {SOURCE: digest_of(result)}
    write_file(path, lambda temporary: figure.savefig(temporary, metadata=metadata))


def digest_of(result: Result) -> str:
    """Return what changes with a result."""
    content = json.dumps([result.program, result.machine, result.subject, result.rows], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_current(result: Result, path: Path) -> bool:
    """Return whether a figure is there and was drawn from this result."""
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.info.get(SOURCE) == digest_of(result)


def _add(panels: dict[str, dict[str, Curve]], title: str, label: str, size: int, value: float) -> None:
    sizes, values = panels.setdefault(title, {}).setdefault(label, ([], []))
    sizes.append(size)  # pyrefly: ignore[missing-attribute]
    values.append(value)  # pyrefly: ignore[missing-attribute]


def _scale(axes: Axes, sizes: Sequence[Any], drawing: Drawing) -> None:
    if drawing.is_logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
