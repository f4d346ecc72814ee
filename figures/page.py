"""Self-contained HTML pages of figures and tables; all names are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio.core.files import write_text
from modeling_radio.metrics.results import Source, Table


TEMPLATE = Path(__file__).parent / "page.html.jinja"
GENERATOR = '<meta name="generator" content="radio evaluate">'
"""Marks the pages of this project."""
WEBP_QUALITY = 88
"""Quality of photographs. Our choice: losses are not visible, at a fourth of the size of PNG."""
SHOWN_PX = 224
"""Side of the images, our choice: sharp on a phone, and a page of some hundred stays below 5 MB."""


@dataclass(frozen=True)
class CaptionedImage:
    """One image.

    Attributes:
        pixels: uint8 RGB, `(3, height, width)`.
        alt: Description for those who cannot see it.
        caption: Text below it.
        is_grid: Whether it is a map of patches, drawn with sharp edges.
        is_right: Marks a right or a wrong prediction; None marks nothing.
    """

    pixels: Tensor
    alt: str
    caption: str = ""
    is_grid: bool = False
    is_right: bool | None = None

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        content = io.BytesIO()
        to_pil_image(self.pixels).save(content, "webp", lossless=self.is_grid, quality=WEBP_QUALITY)
        return _uri(content.getvalue(), "webp")


@dataclass(frozen=True)
class Drawing:
    """A figure, which takes the whole width.

    Attributes:
        content: The content of its file.
        alt: Description for those who cannot see it.
        kind: "png" or "webp".
        narrow: The same in another arrangement for phones, of the same kind; None for none.
    """

    content: bytes
    alt: str
    kind: str = "png"
    narrow: bytes | None = None

    @property
    def uri(self) -> str:
        """The figure as a data URI."""
        return _uri(self.content, self.kind)

    @property
    def narrow_uri(self) -> str | None:
        """The icon for phones as a data URI."""
        return None if self.narrow is None else _uri(self.narrow, self.kind)

    @classmethod
    def of(cls, figure: Figure, alt: str) -> Drawing:
        """Return a figure of matplotlib."""
        content = io.BytesIO()
        figure.savefig(content, format="png")
        return cls(content.getvalue(), alt)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        with Image.open(io.BytesIO(self.content)) as image:
            return image.size


@dataclass(frozen=True)
class ImageRow:
    """Images under one title."""

    title: str
    images: Sequence[CaptionedImage]


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in this order.

    Attributes:
        title: Its heading.
        text: Help to read it.
        tables: Tables of measurements.
        legend: Names and their CSS colors.
        rows: Rows of images.
        drawing: A figure.
        steps: Commands to copy, by their purpose.
        items: Entries of a list.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    legend: Sequence[tuple[str, str]] = ()
    rows: Sequence[ImageRow] = ()
    drawing: Drawing | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    items: Sequence[str] = ()


def source_section(sources: Sequence[Source]) -> list[Section]:
    """Return the section that names teachers and data, if there are any."""
    items = [
        f"{each.name}: {each.role}{', ' + each.size if each.size else ''} ({each.origin}; {each.license})"
        for each in sources
    ]
    return [Section("Made from, measured on", items=items)] if items else []


def check_page(path: Path, name: str = "output") -> None:
    """Refuse an output that would replace anything but a page, before anything is measured.

    Args:
        path: File of the page.
        name: Name of the setting that gives the path, for messages.

    Raises:
        ValueError: If there is something else.
    """
    if path.exists() and (path.is_dir() or GENERATOR.encode() not in path.read_bytes()):
        raise ValueError(
            f"`{name}` must leave room for its page, got {str(path)!r}, which holds something else. Name another file."
        )


def write_page(path: Path, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write a page atomically. All texts are escaped.

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
