"""Figures of features: images side by side, in columns of photographs, teachers, adaptors and backbones."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from modeling_radio.core.files import write_file
from modeling_radio.training.figures.features import (
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


CELL_INCHES, GAP_INCHES, TITLE_INCHES = 1.3, 0.22, 0.55
EDGE_INCHES = 0.03
"""White between neighboring images of a column."""


CAPTION_POINTS = 8
CAPTION_LINE_INCHES = 0.15
CAPTION_CHARACTERS_PER_INCH = 15
"""Our choice: the wide sans-serif font of matplotlib at `CAPTION_POINTS`, with an edge left free."""


@dataclass(frozen=True)
class Column:
    """One column of a figure of features.

    Attributes:
        title: Above the column; may have two lines.
        images: RGB in [0, 1], `(num_rows, rows, cols, 3)`.
        starts_group: Whether a gap separates it from the column before.
    """

    title: str
    images: Tensor
    starts_group: bool = True


def feature_columns(
    photographs: Tensor,
    teachers: Mapping[str, Tensor],
    adaptors: Mapping[str, Tensor],
    backbones: Mapping[str, Tensor],
) -> list[Column]:
    """Color the features of some photographs for `draw_columns`.

    All maps must have one grid. Their components are those of the foreground of the teacher that shows it clearest.

    Args:
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        teachers: Dense features by teacher, `(num_photographs, dim, rows, cols)`; at least one.
        adaptors: The student's predictions for the same names.
        backbones: Dense features by title, each drawn in a basis of its own.

    Returns:
        The photographs with a marked patch, each teacher with its adaptor, the backbones, and the backbones' similarity
        of every patch to the marked one.
    """
    salience = foreground_map(clearest(teachers.values()))
    foreground, positions = salience > 0, most_salient_positions(salience)
    columns = [Column("photograph", marked(to_colors(photographs), positions, salience.shape[1:]))]
    for name, features in teachers.items():
        basis = fit_pca_basis(features, foreground=foreground)
        columns += [teacher_column(name, features, basis), adaptor_column(name, adaptors[name], basis)]
    alike = []
    for index, (title, features) in enumerate(backbones.items()):
        colors = pca_colors(features, fit_pca_basis(features, foreground=foreground))
        columns.append(Column(title, colors, starts_group=index == 0))
        heat = similarity_colors(similarity_maps(features, positions))
        alike.append(Column(f"similar to the ring:\n{title}".replace("backbone\n", ""), heat, starts_group=index == 0))
    return columns + alike


def photograph_column(photographs: Tensor) -> Column:
    """Return uint8 RGB images `(num_photographs, 3, height, width)` as a column."""
    return Column("photograph", to_colors(photographs))


def teacher_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return a teacher's dense features `(num_photographs, dim, rows, cols)` as a column."""
    return Column(f"teacher\n{name}", pca_colors(features, basis))


def adaptor_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return an adaptor's dense features as a column beside its teacher, whose basis is given.

    The directions are the teacher's, the range is the adaptor's own. A network that learns by squared errors predicts
    closer to the mean the less certain it is, so that within the teacher's range a half-trained adaptor is nearly
    uniform. The title says how many times narrower its range is.
    """
    colors = pca_colors(features, basis.with_range_of(features))
    return Column(f"student's adaptor{basis.stretch(features)}\n{name}", colors, starts_group=False)


def draw_columns(columns: Sequence[Column], path: Path, *, caption: str = "") -> None:
    """Draw images side by side and write a PNG atomically.

    Args:
        columns: Columns of equal length.
        path: The PNG to write.
        caption: Below the figure, in as many lines as it needs.
    """
    num_gaps = sum(column.starts_group for column in columns[1:])
    width = CELL_INCHES * len(columns) + GAP_INCHES * (num_gaps + 2)
    lines = textwrap.wrap(caption, int(width * CAPTION_CHARACTERS_PER_INCH))
    foot = GAP_INCHES + CAPTION_LINE_INCHES * len(lines)
    height = CELL_INCHES * len(columns[0].images) + TITLE_INCHES + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    left, size = 0.0, CELL_INCHES - EDGE_INCHES
    for column in columns:
        left += GAP_INCHES if column.starts_group else 0.0
        for row, image in enumerate(column.images):
            bottom = height - TITLE_INCHES - CELL_INCHES * (row + 1)
            axes = figure.add_axes((left / width, bottom / height, size / width, size / height))
            axes.imshow(image.numpy())
            axes.set_axis_off()
        center = ((left + CELL_INCHES / 2) / width, 1 - TITLE_INCHES * 0.55 / height)
        figure.text(*center, column.title, ha="center", va="center", fontsize=8)
        left += CELL_INCHES
    text = "\n".join(lines)
    figure.text(0.5, foot / 2 / height, text, ha="center", va="center", fontsize=CAPTION_POINTS, color="0.3")
    write_file(path, figure.savefig)
