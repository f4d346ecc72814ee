"""Pages of pictures and tables: one HTML file each, which asks nothing of any server and says names as they are."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from core.files import write_text
from model_cards.results import Source, Table
from training.figures.features import to_colors, to_pixels


TEMPLATE = Path(__file__).parent / "page.html.jinja"
GENERATOR = '<meta name="generator" content="training.evaluate">'
"""Tells a page of ours from other files."""
WEBP_QUALITY = 88
"""Of photographs, our choice: nothing of it is to be seen, at a fourth of the size of PNG."""
SHOWN_PX = 224
"""Side of the pictures, our choice: sharp on a phone, and a page of some hundred stays below 5 MB."""


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
        return _uri(content.getvalue(), "webp")


@dataclass(frozen=True)
class Drawing:
    """A figure, which takes the whole width.

    Attributes:
        png: The content of its file.
        alt: What it shows, for those who cannot see it.
    """

    png: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The figure itself, as an address."""
        return _uri(self.png, "png")

    @classmethod
    def of(cls, figure: Figure, alt: str) -> Drawing:
        """Return a figure of matplotlib."""
        content = io.BytesIO()
        figure.savefig(content, format="png")
        return cls(content.getvalue(), alt)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        with Image.open(io.BytesIO(self.png)) as picture:
            return picture.size


@dataclass(frozen=True)
class Row:
    """Pictures that are looked at together, under a title."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A part of a page; what it has is shown in this order.

    Attributes:
        title: What it is about.
        text: How to read it.
        tables: Of measurements.
        legend: Names of colors, as CSS has them.
        rows: Of pictures.
        drawing: A figure.
        steps: Words to copy, by what they are for.
        items: Of a list.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    legend: Sequence[tuple[str, str]] = ()
    rows: Sequence[Row] = ()
    drawing: Drawing | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    items: Sequence[str] = ()


def picture_rows(
    names: Sequence[str], photographs: Tensor, columns: Mapping[str, Tensor], smooth: Collection[str] = ()
) -> list[Row]:
    """Return a row for each photograph: itself, then its picture of each column.

    Args:
        names: Of the photographs.
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        columns: RGB in [0, 1], `(num_photographs, rows, cols, 3)`, by caption; one called "photograph" takes the place
            of the photographs.
        smooth: Captions of columns that are no grids of patches.
    """
    columns = {"photograph": to_colors(photographs), **columns}
    return [
        Row(
            name,
            [
                Picture(
                    to_pixels(images[number]),
                    f"{name}: {caption}",
                    caption,
                    is_grid=caption not in {"photograph", *smooth},
                )
                for caption, images in columns.items()
            ],
        )
        for number, name in enumerate(names)
    ]


def source_section(sources: Sequence[Source]) -> list[Section]:
    """Return the section that names teachers and data, if there are any."""
    items = [
        f"{each.name}: {each.role}{', ' + each.size if each.size else ''} ({each.origin}; {each.license})"
        for each in sources
    ]
    return [Section("Made from, measured on", items=items)] if items else []


def check_page(path: Path, name: str = "output") -> None:
    """Refuse to write a page in place of anything but a page, before anything is measured.

    Args:
        path: Where it shall be.
        name: Of the setting that says so.

    Raises:
        ValueError: If something else is there.
    """
    if path.exists() and (path.is_dir() or GENERATOR.encode() not in path.read_bytes()):
        raise ValueError(
            f"`{name}` must leave room for its page, got {str(path)!r}, which holds something else. Name another file."
        )


def write_page(path: Path, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write a page; a reader never sees half of it. All texts are escaped.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE.name)
    generator = Markup(GENERATOR)  # noqa: S704  a constant of ours
    write_text(path, template.render(generator=generator, title=title, text=text, sections=sections))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
