"""Figures of features: rows of images, of photographs, teachers, adaptors and backbones."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from modeling_radio.core.files import write_file
from modeling_radio.figures.features import (
    DPI,
    PcaBasis,
    clearest,
    fit_pca_basis,
    foreground_map,
    marked,
    most_salient_positions,
    pca_colors,
    similarity_colors,
    similarity_maps,
    to_colors,
)
from modeling_radio.figures.style import on_any_background


CELL_INCHES, GAP_INCHES = 1.3, 0.15
LABEL_INCHES = 2.0
"""Width of the labels at the left; our choice: at `LABEL_POINTS` they hold `LABEL_CHARACTERS`."""
LABEL_POINTS, LABEL_CHARACTERS = 10, 24
"""Our choice: with five images a row, labels can be read when a page shows the figure 700 px wide."""
EDGE_INCHES = 0.03
"""White between neighboring images."""
CAPTION_POINTS = 9
CAPTION_LINE_INCHES = 0.17
CAPTION_CHARACTERS_PER_INCH = 13
"""Our choice: the wide sans-serif font of matplotlib at `CAPTION_POINTS`, with an edge left free."""


@dataclass(frozen=True)
class FigureRow:
    """One row of a figure of features.

    Attributes:
        title: At the left; may have two lines.
        images: RGB in [0, 1], `(num_images, rows, cols, 3)`.
        starts_group: Whether a gap separates it from the row above.
    """

    title: str
    images: Tensor
    starts_group: bool = True


def feature_rows(
    photographs: Tensor,
    teachers: Mapping[str, Tensor],
    adaptors: Mapping[str, Tensor],
    backbone: Tensor,
) -> list[FigureRow]:
    """Color the features of some photographs for `draw_rows`.

    All maps must have one grid. Their components are those of the foreground of the teacher that shows it clearest.

    Args:
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        teachers: Dense features by teacher, `(num_photographs, dim, rows, cols)`; at least one.
        adaptors: The student's predictions for the same names.
        backbone: The student's dense features, drawn in a basis of their own.

    Returns:
        The photographs with a marked patch, each teacher with its adaptor, the backbone, and the backbone's similarity
        of every patch to the marked one.
    """
    salience = foreground_map(clearest(teachers.values()))
    foreground, positions = salience > 0, most_salient_positions(salience)
    rows = [FigureRow("photograph", marked(to_colors(photographs), positions, salience.shape[1:]))]
    for name, features in teachers.items():
        basis = fit_pca_basis(features, foreground=foreground)
        rows += [teacher_row(name, features, basis), adaptor_row(name, adaptors[name], basis)]
    rows.append(FigureRow("student's backbone", pca_colors(backbone, fit_pca_basis(backbone, foreground=foreground))))
    heat = similarity_colors(similarity_maps(backbone, positions))
    return [*rows, FigureRow("similar to the ring", heat, starts_group=False)]


def photograph_row(photographs: Tensor) -> FigureRow:
    """Return uint8 RGB images `(num_photographs, 3, height, width)` as a row."""
    return FigureRow("photograph", to_colors(photographs))


def teacher_row(name: str, features: Tensor, basis: PcaBasis) -> FigureRow:
    """Return a teacher's dense features `(num_photographs, dim, rows, cols)` as a row."""
    return FigureRow(f"teacher\n{name}", pca_colors(features, basis))


def adaptor_row(name: str, features: Tensor, basis: PcaBasis) -> FigureRow:
    """Return an adaptor's dense features as a row below its teacher, whose basis is given.

    The directions are the teacher's, the range is the adaptor's own. A network that learns by squared errors predicts
    closer to the mean the less certain it is, so that within the teacher's range a half-trained adaptor is nearly
    uniform. The title says how many times narrower its range is.
    """
    colors = pca_colors(features, basis.with_range_of(features))
    return FigureRow(f"student's adaptor{basis.stretch(features)}\n{name}", colors, starts_group=False)


@on_any_background
def draw_rows(rows: Sequence[FigureRow], path: Path, *, caption: str = "") -> None:
    """Draw rows of images with their titles at the left, and write a PNG atomically.

    Args:
        rows: Rows of equal length.
        path: The PNG to write.
        caption: Below the figure, in as many lines as it needs.
    """
    width = GAP_INCHES * 3 + LABEL_INCHES + CELL_INCHES * len(rows[0].images)
    lines = textwrap.wrap(caption, int(width * CAPTION_CHARACTERS_PER_INCH))
    foot = GAP_INCHES * 2 + CAPTION_LINE_INCHES * len(lines)
    height = CELL_INCHES * len(rows) + GAP_INCHES * (1 + sum(row.starts_group for row in rows[1:])) + foot
    figure = Figure(figsize=(width, height), dpi=DPI)
    top, size = height - GAP_INCHES, CELL_INCHES - EDGE_INCHES
    for number, row in enumerate(rows):
        top -= GAP_INCHES if row.starts_group and number else 0.0
        for column, image in enumerate(row.images):
            left = GAP_INCHES * 2 + LABEL_INCHES + CELL_INCHES * column
            axes = figure.add_axes((left / width, (top - CELL_INCHES) / height, size / width, size / height))
            axes.imshow(image.numpy())
            axes.set_axis_off()
        title = "\n".join(textwrap.fill(line, LABEL_CHARACTERS) for line in row.title.splitlines())
        middle = (GAP_INCHES / width, (top - CELL_INCHES / 2) / height)
        figure.text(*middle, title, ha="left", va="center", fontsize=LABEL_POINTS)
        top -= CELL_INCHES
    figure.text(0.5, foot / 2 / height, "\n".join(lines), ha="center", va="center", fontsize=CAPTION_POINTS)
    write_file(path, figure.savefig)
