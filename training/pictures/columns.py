"""Pictures of features side by side: photographs, teachers, the student's adaptors and its backbone, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from foundation.files import write_file
from training.pictures.features import (
    DPI,
    PcaBasis,
    clearest,
    fit_pca_basis,
    foreground_map,
    marked,
    most_salient_places,
    pca_colors,
    similarity_colors,
    similarity_maps,
    to_colors,
)


CELL_INCHES = 1.3
GAP_INCHES = 0.22
TITLE_INCHES = 0.55


@dataclass(frozen=True)
class Column:
    """One column of a feature picture.

    Attributes:
        title: Shown above it; may have two lines.
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

    All maps must be of one grid. Their components are those of the foreground of the teacher that shows it clearest.

    Args:
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        teachers: Dense features per teacher name, `(num_photographs, dim, rows, cols)`; at least one.
        adaptors: The student's answer for the same names.
        backbones: Dense features drawn in a basis of their own, per title.

    Returns:
        The photographs with a marked place, each teacher with its adaptor, the backbones, and how alike the backbones
        hold every place to the marked one.
    """
    things = foreground_map(clearest(teachers.values()))
    foreground, places = things > 0, most_salient_places(things)
    shown = photograph_column(photographs)
    columns = [Column(shown.title, marked(shown.images, places, things.shape[1:]))]
    for name, features in teachers.items():
        basis = fit_pca_basis(features, foreground=foreground)
        columns += [teacher_column(name, features, basis), adaptor_column(name, adaptors[name], basis)]
    for index, (title, features) in enumerate(backbones.items()):
        colors = pca_colors(features, fit_pca_basis(features, foreground=foreground))
        columns.append(Column(title, colors, starts_group=index == 0))
    for index, (title, features) in enumerate(backbones.items()):
        colors = similarity_colors(similarity_maps(features, places))
        columns.append(Column(f"alike the ring:\n{title}".replace("backbone\n", ""), colors, starts_group=index == 0))
    return columns


def photograph_column(photographs: Tensor) -> Column:
    """Return uint8 RGB images `(num_photographs, 3, height, width)` as a column."""
    return Column("photograph", to_colors(photographs))


def teacher_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return a teacher's dense features `(num_photographs, dim, rows, cols)` as a column."""
    return Column(f"teacher\n{name}", pca_colors(features, basis))


def adaptor_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return an adaptor's answer as a column beside its teacher's, whose basis is given.

    The directions are the teacher's, the range is the adaptor's own. Who learns by squared errors answers nearer to the
    mean the less it is sure of, so that within the teacher's range a half-trained adaptor is nearly uniform. The title
    says how many times narrower its range is, where it is.
    """
    colors = pca_colors(features, basis.with_range_of(features))
    return Column(f"student's adaptor{basis.stretch(features)}\n{name}", colors, starts_group=False)


def draw_columns(columns: Sequence[Column], path: Path, *, caption: str = "") -> None:
    """Draw pictures side by side and write a PNG; a reader never sees half of it.

    Args:
        columns: Equally long columns.
        path: The PNG to write.
        caption: A line below the picture.
    """
    num_rows = len(columns[0].images)
    num_gaps = sum(column.starts_group for column in columns[1:])
    width = CELL_INCHES * len(columns) + GAP_INCHES * (num_gaps + 2)
    height = CELL_INCHES * num_rows + TITLE_INCHES + GAP_INCHES * 2
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    left = 0.0
    for column in columns:
        left += GAP_INCHES if column.starts_group else 0.0
        _draw_column(figure, column, left)
        left += CELL_INCHES
    if caption:
        figure.text(0.5, GAP_INCHES * 0.55 / height, caption, ha="center", va="center", fontsize=7, color="0.4")
    write_file(path, figure.savefig)


def _draw_column(figure: Figure, column: Column, left: float) -> None:
    width, height = figure.get_size_inches()
    edge = 0.03  # inches of white between neighboring cells
    for row, image in enumerate(column.images):
        bottom = height - TITLE_INCHES - CELL_INCHES * (row + 1)
        size = CELL_INCHES - edge
        axes = figure.add_axes((left / width, bottom / height, size / width, size / height))
        axes.imshow(image.numpy())
        axes.set_axis_off()
    center = (left + CELL_INCHES / 2) / width
    figure.text(center, 1 - TITLE_INCHES * 0.55 / height, column.title, ha="center", va="center", fontsize=8)
