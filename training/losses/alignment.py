"""Bringing dense features of student and teacher into one frame: the larger of both grids, moved to where they lie."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class AlignedMaps(NamedTuple):
    """Student and teacher features on one grid, in one frame.

    Attributes:
        student: `(batch, C, rows, cols)`.
        teacher: `(batch, C, rows, cols)`.
        valid: `(batch, rows, cols)` bool: what both crops show. Elsewhere the maps hold anything finite.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor


def align_to_teacher(
    student: Tensor, teacher: Tensor, shift: Tensor | None = None, patches: Sequence[int] | None = None
) -> AlignedMaps:
    """Return both maps on the larger of their two grids, one moved into the frame of the other.

    With a shift, both crops must show an area of the same size, the teacher's displaced. Where a student's patch is a
    whole number of cells of the common grid, every shift is, and the teacher's values are copied to where the student
    has them: nothing is interpolated, and no gradient flows through the move. Otherwise the student's are interpolated
    in the teacher's frame.

    Args:
        student: `(batch, C, rows, cols)`, output of the teacher's dense head.
        teacher: `(batch, C, teacher_rows, teacher_cols)`, standardized features, without gradients.
        shift: `(batch, 2)` integers, rows and columns, in the student's patches: teacher's crop minus student's crop.
            None where both crops are the same.
        patches: The student's rows and columns of patches, where its head gives several cells for each; None where it
            gives one.

    Returns:
        The aligned maps in float32.

    References:
        AM-RADIO 4 (the larger grid), https://arxiv.org/abs/2312.06709; C-RADIOv4 Eq 1 (shifts and overlap).
    """
    grid = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
    student_grid = student.shape[2:] if patches is None else patches
    student, teacher = _resample(student.float(), grid), _resample(teacher.float(), grid)
    if shift is None:
        return AlignedMaps(student, teacher, torch.ones(len(student), *grid, dtype=torch.bool, device=student.device))
    if grid[0] % student_grid[0] == 0 and grid[1] % student_grid[1] == 0:
        cells = shift * shift.new_tensor([grid[0] // student_grid[0], grid[1] // student_grid[1]])
        return AlignedMaps(student, *_move(teacher, -cells))
    return _interpolate_student(student, teacher, shift, student_grid)


def _interpolate_student(student: Tensor, teacher: Tensor, shift: Tensor, student_grid: Sequence[int]) -> AlignedMaps:
    """Move the student into the teacher's frame by a fraction of a cell; both are on the common grid."""
    grid = student.shape[2:]
    valid = torch.ones(len(student), *grid, dtype=torch.bool, device=student.device)
    for axis in (0, 1):
        cells = shift[:, axis].double() * grid[axis] / student_grid[axis]
        student, inside = _translate(student, cells, dim=axis + 2)
        valid &= inside.unsqueeze(2 - axis)
    return AlignedMaps(student, teacher, valid)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _move(features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return `features` read at position + cells, and which positions lie inside; whole tokens are copied.

    Args:
        features: `(batch, C, rows, cols)`.
        cells: `(batch, 2)` integers, rows and columns.

    Returns:
        The moved features, which repeat their border outside, and `(batch, rows, cols)` bool.
    """
    batch, _, num_rows, num_cols = features.shape
    rows = torch.arange(num_rows, device=cells.device) + cells[:, :1]
    cols = torch.arange(num_cols, device=cells.device) + cells[:, 1:]
    inside = _is_inside(rows, num_rows)[:, :, None] & _is_inside(cols, num_cols)[:, None, :]
    rows, cols = rows.clamp(0, num_rows - 1)[:, :, None], cols.clamp(0, num_cols - 1)[:, None, :]
    images = torch.arange(batch, device=cells.device)[:, None, None]
    tokens = features.movedim(1, -1).flatten(0, 2)  # (batch, C, rows, cols) -> (tokens, C)
    moved = tokens.index_select(0, ((images * num_rows + rows) * num_cols + cols).flatten())
    return moved.view(batch, num_rows, num_cols, -1).movedim(-1, 1), inside


def _is_inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


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
