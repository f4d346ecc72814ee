"""Writes the page: tables with intervals, curves, and sections of pictures, all inside one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from foundation.files import write_text
from model_cards.results import Results, build_tables
from training.evaluation.report.curves import resolution_charts


TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = '<meta name="generator" content="training.evaluate">'
"""Tells a page of ours from other files."""
WEBP_QUALITY = 88
"""Of photographs, our choice: nothing of it is to be seen, at a fourth of the size of PNG."""


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        pixels: uint8 RGB, `(3, height, width)`.
        alt: What it shows, for those who cannot see it.
        caption: Below it; names are shown as they are.
        is_grid: Drawn with sharp cells: a map of patches.
        is_right: Marked as a right or a wrong answer; None marks nothing.
    """

    pixels: Tensor
    alt: str
    caption: str = ""
    is_grid: bool = False
    is_right: bool | None = None

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        content = io.BytesIO()
        to_pil_image(self.pixels).save(content, "webp", lossless=self.is_grid, quality=WEBP_QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class Row:
    """Pictures that are looked at together, under a title."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """Rows of pictures of one kind.

    Attributes:
        title: What they are.
        text: How to read them.
        rows: At least one.
        legend: Names of colors, as CSS has them.
    """

    title: str
    text: str
    rows: Sequence[Row]
    legend: Sequence[tuple[str, str]] = ()


def write_page(path: Path, results: Results, sections: Sequence[Section] = (), *, title: str = "Evaluation") -> None:
    """Write the page; a reader never sees half of it.

    Args:
        path: The `.html` to write.
        results: What was measured.
        sections: Pictures beside the numbers.
        title: Of the page.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    page = render(
        "page.html.jinja",
        title=title,
        results=results,
        tables=build_tables(results.measurements),
        charts=resolution_charts(results.measurements),
        sections=sections,
    )
    write_text(path, page)


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template beside this file; values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(generator=Markup(GENERATOR), **values)
