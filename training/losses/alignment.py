"""Dense features of student and teacher on one grid and in one frame, to be compared position by position."""

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
        valid: `(batch, rows, cols)` bool: positions that both crops show. The maps are finite elsewhere, too.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor


def align_to_teacher(
    student: Tensor,
    teacher: Tensor,
    shift: Tensor | None = None,
    patches: Sequence[int] | None = None,
    extent: Tensor | None = None,
) -> AlignedMaps:
    """Return both maps on the larger of their two grids, one of them moved into the frame of the other.

    With a shift, the two crops must show areas of the same size. If a student's patch covers a whole number of
    positions of the common grid, every shift does, too: the teacher's values are copied to the student's positions.
    Nothing is interpolated, and no gradient flows through the move. Otherwise the student's map is interpolated in the
    teacher's frame.

    A position is valid if both maps are read between the centers of positions that show nothing but the image: there
    is nothing to interpolate with beyond the outermost centers.

    Args:
        student: `(batch, C, rows, cols)`, output of the teacher's dense head.
        teacher: `(batch, C, teacher_rows, teacher_cols)`, standardized features, without gradients.
        shift: `(batch, 2)` integers, rows and columns, in the student's patches: the teacher's crop minus the
            student's. None if both crops are the same.
        patches: The student's rows and columns of patches if its head has several positions for each patch; None if
            it has one.
        extent: `(batch, 2, 2)` integers, for rows and for columns: the student's patch at which the image begins, and
            the first one behind its end. None if both crops lie within the image.

    Returns:
        The aligned maps in float32.

    References:
        AM-RADIO 4 (the larger grid), https://arxiv.org/abs/2312.06709; C-RADIOv4 Eq 1 (shifts and overlap).
    """
    grid = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
    patches = student.shape[2:] if patches is None else patches
    is_copied = grid[0] % patches[0] == 0 and grid[1] % patches[1] == 0
    valid = torch.ones(len(student), *grid, dtype=torch.bool, device=student.device)
    student_positions, teacher_positions = [], []
    for axis, (length, count) in enumerate(zip(grid, patches, strict=True)):
        ours = theirs = torch.arange(length, device=student.device)[None]
        own_extent = their_extent = None if extent is None else extent[:, axis]
        if shift is not None:
            shifts = shift[:, axis, None]
            their_extent = None if own_extent is None else own_extent - shifts
            if is_copied:
                theirs = theirs - shifts * (length // count)
            else:
                ours = ours + shifts.double() * length / count
        inside = _is_readable(ours, student.shape[2 + axis], length, count, own_extent)
        inside = inside & _is_readable(theirs, teacher.shape[2 + axis], length, count, their_extent)
        valid &= inside.unsqueeze(2 - axis)
        student_positions.append(ours)
        teacher_positions.append(theirs)
    student, teacher = _resample(student.float(), grid), _resample(teacher.float(), grid)
    if shift is not None and is_copied:
        teacher = _copy(teacher, *teacher_positions)
    elif shift is not None:
        student = _interpolate(_interpolate(student, student_positions[0], dim=2), student_positions[1], dim=3)
    return AlignedMaps(student, teacher, valid)


def shows_image(extent: Tensor, grid: Sequence[int], patches: Sequence[int]) -> Tensor:
    """Return `(batch, rows, cols)` bool: the positions of a crop's map that show nothing but the image.

    Args:
        extent: `(batch, 2, 2)`, as in `align_to_teacher`, in this crop.
        grid: Rows and columns of the map.
        patches: The student's rows and columns of patches in a crop of this size.
    """
    rows, cols = (
        _is_readable(torch.arange(length, device=extent.device)[None], length, length, count, extent[:, axis])
        for axis, (length, count) in enumerate(zip(grid, patches, strict=True))
    )
    return rows[:, :, None] & cols[:, None, :]


def _is_readable(positions: Tensor, num_own: int, length: int, num_patches: int, extent: Tensor | None) -> Tensor:
    """Return where a resampled map can be read along an axis: between the outermost centers that show the image.

    Args:
        positions: `(batch or 1, length)` positions on the common grid, whole or not.
        num_own: Positions of the map before it was resampled.
        length: Positions of the common grid.
        num_patches: The student's patches, which cover as much as the map.
        extent: `(batch, 2)`: patches from the map's edge to where the image begins, and to where it ends.
    """
    first, last = 0, num_own - 1
    if extent is not None:
        first = (-(-extent[:, :1] * num_own // num_patches)).clamp(min=0)
        last = (extent[:, 1:] * num_own // num_patches - 1).clamp(max=num_own - 1)
    # The center of own position n lies at (n + 1/2) length / num_own - 1/2 of the common grid: round to its inside.
    lower = -((num_own - (2 * first + 1) * length) // (2 * num_own))
    upper = ((2 * last + 1) * length - num_own) // (2 * num_own)
    return (positions >= lower) & (positions <= upper)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _copy(features: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return `(batch, C, num_rows, num_cols)` features read at other positions; the border is repeated outside.

    Args:
        features: `(batch, C, num_rows, num_cols)`.
        rows: `(batch, num_rows)` integers.
        cols: `(batch, num_cols)` integers.
    """
    batch, _, num_rows, num_cols = features.shape
    rows, cols = rows.clamp(0, num_rows - 1)[:, :, None], cols.clamp(0, num_cols - 1)[:, None, :]
    images = torch.arange(batch, device=rows.device)[:, None, None]
    tokens = features.movedim(1, -1).flatten(0, 2)  # (batch, C, rows, cols) -> (tokens, C)
    moved = tokens.index_select(0, ((images * num_rows + rows) * num_cols + cols).flatten())
    return moved.view(batch, num_rows, num_cols, -1).movedim(-1, 1)


def _interpolate(features: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Return features interpolated linearly at other positions along `dim`; the border is repeated outside.

    Args:
        features: `(batch, C, rows, cols)`.
        positions: `(batch, length)` float64.
        dim: 2 for rows, 3 for columns.
    """
    length = features.shape[dim]
    lower = positions.floor()
    shape = [len(features), 1, 1, 1]
    shape[dim] = length

    def read(index: Tensor) -> Tensor:
        index = index.long().clamp(0, length - 1).view(shape)
        return features.gather(dim, index.expand_as(features))

    weight = (positions - lower).to(features.dtype).view(shape)
    return read(lower) * (1 - weight) + read(lower + 1) * weight
