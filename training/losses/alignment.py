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
    student: Tensor,
    teacher: Tensor,
    shift: Tensor | None = None,
    patches: Sequence[int] | None = None,
    extent: Tensor | None = None,
) -> AlignedMaps:
    """Return both maps on the larger of their two grids, one moved into the frame of the other.

    With a shift, both crops must show an area of the same size, the teacher's displaced. Where a student's patch is a
    whole number of cells of the common grid, every shift is, and the teacher's values are copied to where the student
    has them: nothing is interpolated, and no gradient flows through the move. Otherwise the student's are interpolated
    in the teacher's frame.

    Positions are valid where both maps are read between the centers of cells that show nothing but the image: beyond
    the outermost centers there is nothing to interpolate with.

    Args:
        student: `(batch, C, rows, cols)`, output of the teacher's dense head.
        teacher: `(batch, C, teacher_rows, teacher_cols)`, standardized features, without gradients.
        shift: `(batch, 2)` integers, rows and columns, in the student's patches: teacher's crop minus student's crop.
            None where both crops are the same.
        patches: The student's rows and columns of patches, where its head gives several cells for each; None where it
            gives one.
        extent: `(batch, 2, 2)` integers, of rows and of columns: at which of the student's patches the image begins,
            and at which it has ended. None where both crops lie within the image.

    Returns:
        The aligned maps in float32.

    References:
        AM-RADIO 4 (the larger grid), https://arxiv.org/abs/2312.06709; C-RADIOv4 Eq 1 (shifts and overlap).
    """
    grid = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
    patches = student.shape[2:] if patches is None else patches
    is_copied = grid[0] % patches[0] == 0 and grid[1] % patches[1] == 0
    valid = torch.ones(len(student), *grid, dtype=torch.bool, device=student.device)
    student_places, teacher_places = [], []
    for axis, (length, count) in enumerate(zip(grid, patches, strict=True)):
        ours = theirs = torch.arange(length, device=student.device)[None]
        seen = theirs_seen = None if extent is None else extent[:, axis]
        if shift is not None:
            shifts = shift[:, axis, None]
            theirs_seen = None if seen is None else seen - shifts
            if is_copied:
                theirs = theirs - shifts * (length // count)
            else:
                ours = ours + shifts.double() * length / count
        inside = _is_readable(ours, student.shape[2 + axis], length, count, seen)
        inside = inside & _is_readable(theirs, teacher.shape[2 + axis], length, count, theirs_seen)
        valid &= inside.unsqueeze(2 - axis)
        student_places.append(ours)
        teacher_places.append(theirs)
    student, teacher = _resample(student.float(), grid), _resample(teacher.float(), grid)
    if shift is not None and is_copied:
        teacher = _copy(teacher, *teacher_places)
    elif shift is not None:
        student = _interpolate(_interpolate(student, student_places[0], dim=2), student_places[1], dim=3)
    return AlignedMaps(student, teacher, valid)


def shows_image(extent: Tensor, grid: Sequence[int], patches: Sequence[int]) -> Tensor:
    """Return `(batch, rows, cols)` bool: which cells of a crop's map show nothing but the image.

    Args:
        extent: `(batch, 2, 2)`, as of `align_to_teacher`, in this crop.
        grid: Rows and columns of the map.
        patches: The student's rows and columns of patches in a crop of this size.
    """
    rows, cols = (
        _is_readable(torch.arange(length, device=extent.device)[None], length, length, count, extent[:, axis])
        for axis, (length, count) in enumerate(zip(grid, patches, strict=True))
    )
    return rows[:, :, None] & cols[:, None, :]


def _is_readable(places: Tensor, num_cells: int, length: int, num_patches: int, extent: Tensor | None) -> Tensor:
    """Return where a resampled map can be read along an axis: between the outermost centers of cells of the image.

    Args:
        places: `(batch or 1, length)` positions on the common grid, whole or not.
        num_cells: Of the map, before it was resampled.
        length: Of the common grid.
        num_patches: Of the student, which show as much as the map.
        extent: `(batch, 2)`: at which patch from the map's edge the image begins, and at which it has ended.
    """
    first, last = 0, num_cells - 1
    if extent is not None:
        first = (-(-extent[:, :1] * num_cells // num_patches)).clamp(min=0)
        last = (extent[:, 1:] * num_cells // num_patches - 1).clamp(max=num_cells - 1)
    # The center of cell n lies at (n + 1/2) length / num_cells - 1/2; of what lies between, whole positions are known.
    lower = -((num_cells - (2 * first + 1) * length) // (2 * num_cells))
    upper = ((2 * last + 1) * length - num_cells) // (2 * num_cells)
    return (places >= lower) & (places <= upper)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _copy(features: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return the tokens of `(batch, C, rows, cols)` features at other places; outside, the border is repeated.

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


def _interpolate(features: Tensor, places: Tensor, dim: int) -> Tensor:
    """Return `features` read linearly at other places along `dim`; outside, the border is repeated.

    Args:
        features: `(batch, C, rows, cols)`.
        places: `(batch, length)` float64.
        dim: 2 for rows, 3 for columns.
    """
    length = features.shape[dim]
    lower = places.floor()
    shape = [len(features), 1, 1, 1]
    shape[dim] = length

    def read(index: Tensor) -> Tensor:
        index = index.long().clamp(0, length - 1).view(shape)
        return features.gather(dim, index.expand_as(features))

    weight = (places - lower).to(features.dtype).view(shape)
    return read(lower) * (1 - weight) + read(lower + 1) * weight
