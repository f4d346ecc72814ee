"""Pictures of features: principal components as colors, side by side for teachers and student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from foundation.files import write_file


CELL_INCHES = 1.3
GAP_INCHES = 0.22
TITLE_INCHES = 0.55
DPI = 160


@dataclass(frozen=True)
class PcaBasis:
    """Three principal directions of one feature space and the range that is shown.

    Attributes:
        mean: `(dim,)`.
        components: Orthonormal columns, `(dim, 3)`.
        low: Projection drawn as 0, `(3,)`.
        high: Projection drawn as 1, `(3,)`.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor


def fit_pca_basis(features: Tensor, *, percentile: float = 2.0) -> PcaBasis:
    """Find the three directions along which dense features vary most.

    Args:
        features: `(num_images, dim, rows, cols)` with `dim >= 3`.
        percentile: Share in percent of the tokens cut off at each end of the color range, so that a few
            outlier patches do not wash out the picture. 2 is our choice.

    Returns:
        The basis; the sign of a direction is chosen so that its largest entry is positive.
    """
    tokens = features.movedim(1, -1).flatten(0, 2).double()
    mean = tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh(torch.cov(tokens.T))  # ascending eigenvalues
    components = vectors[:, -3:].flip(1)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    components = components * largest.sign()
    projections = (tokens - mean) @ components
    limits = torch.tensor([percentile / 100, 1 - percentile / 100], dtype=torch.float64)
    low, high = projections.quantile(limits, dim=0)
    return PcaBasis(mean, components, low, high)


def pca_colors(features: Tensor, basis: PcaBasis) -> Tensor:
    """Project features `(num_images, dim, rows, cols)` to RGB in [0, 1], `(num_images, rows, cols, 3)`."""
    projections = (features.movedim(1, -1).double() - basis.mean) @ basis.components
    span = (basis.high - basis.low).clamp(min=1e-12)
    return ((projections - basis.low) / span).clamp(0, 1).float()


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

    An adaptor is drawn in its teacher's basis and range: equal colors mean equal features.

    Args:
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        teachers: Dense features per teacher name, `(num_photographs, dim, rows, cols)`.
        adaptors: The student's answer for the same names.
        backbones: Dense features drawn in a basis of their own, per title.

    Returns:
        The photographs, each teacher with its adaptor, and the backbones.
    """
    columns = [photograph_column(photographs)]
    for name, features in teachers.items():
        basis = fit_pca_basis(features)
        columns += [teacher_column(name, features, basis), adaptor_column(name, adaptors[name], basis)]
    for index, (title, features) in enumerate(backbones.items()):
        columns.append(Column(title, pca_colors(features, fit_pca_basis(features)), starts_group=index == 0))
    return columns


def photograph_column(photographs: Tensor) -> Column:
    """Return uint8 RGB images `(num_photographs, 3, height, width)` as a column."""
    return Column("photograph", photographs.movedim(1, -1).float() / 255)


def teacher_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return a teacher's dense features `(num_photographs, dim, rows, cols)` as a column."""
    return Column(f"teacher\n{name}", pca_colors(features, basis))


def adaptor_column(name: str, features: Tensor, basis: PcaBasis) -> Column:
    """Return an adaptor's answer as a column beside its teacher's, whose basis is given."""
    return Column(f"student's adaptor\n{name}", pca_colors(features, basis), starts_group=False)


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
