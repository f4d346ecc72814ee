"""Bringing the student's dense features into a teacher's frame: the larger of both grids, shifted by whole patches."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class AlignedMaps(NamedTuple):
    """Student and teacher features on one grid, in the teacher's frame.

    Attributes:
        student: `(batch, C, rows, cols)`; zero outside of `valid`.
        teacher: `(batch, C, rows, cols)`.
        valid: `(batch, rows, cols)` bool: what both crops show.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor


def align_to_teacher(student: Tensor, teacher: Tensor, shift: Tensor | None = None) -> AlignedMaps:
    """Return both maps on the larger of their two grids, the student's moved into the teacher's frame.

    Both crops must show an area of the same size, the teacher's displaced by `shift`. A shift that is a whole
    number of cells of the common grid is exact: values are copied, not interpolated.

    Args:
        student: `(batch, C, rows, cols)`, output of the teacher's dense head.
        teacher: `(batch, C, teacher_rows, teacher_cols)`, standardized features.
        shift: `(batch, 2)` integers, rows and columns, in cells of the student's grid: teacher's crop minus
            student's crop. None where both crops are the same.

    Returns:
        The aligned maps in float32.

    References:
        AM-RADIO 4 (the larger grid), https://arxiv.org/abs/2312.06709; C-RADIOv4 Eq 1 (shifts and overlap).
    """
    grid = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
    student_grid = student.shape[2:]
    student, teacher = _resample(student.float(), grid), _resample(teacher.float(), grid)
    valid = torch.ones(len(student), *grid, dtype=torch.bool, device=student.device)
    if shift is not None:
        for axis in (0, 1):
            cells = shift[:, axis].double() * grid[axis] / student_grid[axis]
            student, inside = _translate(student, cells, dim=axis + 2)
            valid &= inside.unsqueeze(2 - axis)
        student = torch.where(valid.unsqueeze(1), student, 0.0)
    return AlignedMaps(student, teacher, valid)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _translate(features: Tensor, cells: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return `features` read at position + cells along `dim`, linearly interpolated, and which positions lie inside.

    Args:
        features: `(batch, C, rows, cols)`.
        cells: `(batch,)` float64.
        dim: 2 for rows, 3 for columns.

    Returns:
        The moved features, and `(batch, length)` bool.
    """
    length = features.shape[dim]
    position = torch.arange(length, dtype=torch.float64, device=cells.device) + cells[:, None]
    lower = position.floor()
    fraction = (position - lower).to(features.dtype)
    inside = (position >= 0) & (position <= length - 1)
    shape = [len(features), 1, 1, 1]
    shape[dim] = length

    def read(index: Tensor) -> Tensor:
        index = index.long().clamp(0, length - 1).view(shape)
        return features.gather(dim, index.expand_as(features))

    weight = fraction.view(shape)
    return read(lower) * (1 - weight) + read(lower + 1) * weight, inside
