"""Dense features of student and teacher on one grid and in one frame, to be compared position by position.

Where two crops show the same follows from sizes and shifts alone. So data workers find it on the CPU (`Alignment`), and
a loss only reads values there: each of a hundred operations on a few integers would cost a GPU the start of a kernel.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


Sides = tuple[int, int]
"""Rows and columns."""


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


class Interpolation(NamedTuple):
    """The two positions between which each value along an axis is interpolated, `(images, length)` each.

    Attributes:
        lower: The first one, integers.
        upper: The second one, integers.
        weight: Share of the second one in the value, float32.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor


class Overlap(NamedTuple):
    """Positions at which a map of the student and one of the teacher are compared, on the larger of their two grids.

    Attributes:
        valid: `(images, rows, cols)` bool: positions that both crops show; one image stands for all that are alike.
        tokens: `(images * rows * cols,)` integers, for each position that of the teacher's value, counted over all
            images; None if the teacher's map is not moved.
        rows: Between which rows the student's map is read; None if it is not moved.
        cols: The same for columns.
        extended: Between which rows and which columns of its own grid the teacher's map is read for the larger one, if
            it is extended to the edge of its crop; a weight beyond 0 and 1 extrapolates. None if it is resampled as is.
    """

    valid: Tensor
    tokens: Tensor | None = None
    rows: Interpolation | None = None
    cols: Interpolation | None = None
    extended: tuple[Interpolation, Interpolation] | None = None


class Alignment(NamedTuple):
    """Indices and masks by which losses compare the student's and a teacher's maps of a group of images.

    With a shift, the two crops must show areas of the same size. If a student's patch covers a whole number of
    positions of the common grid, every shift does, too: the teacher's values are copied to the student's positions.
    Nothing is interpolated, and no gradient flows through the move. Otherwise the student's map is interpolated in the
    teacher's frame.

    A position is valid if both maps are read between the centers of positions that show nothing but the image: there
    is nothing to interpolate with beyond the outermost centers. So the outermost patches of a student with more
    patches than the teacher has positions are compared only where a shift moves them inside the teacher's crop. A
    teacher's map that is extended goes on linearly from its two outermost positions to the edge of its crop, and these
    patches are compared in every image.

    Attributes:
        sides: Rows and columns of the teacher's map.
        shown: `(images, rows, cols)` bool: positions of the teacher's map that show nothing but the image; None if all
            do.
        overlaps: By rows and columns of a map of the student.
        seen: `(images, rows, cols)` bool: positions of the teacher's map that lie within both crops and the image; one
            image stands for all that are alike.
        shift: `(images, 2)` (see `of`).

    References:
        AM-RADIO 4 (the larger grid), https://arxiv.org/abs/2312.06709; C-RADIOv4 Eq 1 (shifts and overlap).
    """

    sides: Sides
    shown: Tensor | None
    overlaps: dict[Sides, Overlap]
    seen: Tensor
    shift: Tensor | None

    @classmethod
    def of(
        cls,
        sides: Sides,
        student_sides: Iterable[Sides],
        patches: Sides,
        shift: Tensor | None = None,
        extent: Tensor | None = None,
        *,
        is_extended: bool = False,
    ) -> "Alignment":
        """Return the alignment of images of one size.

        Args:
            sides: Rows and columns of the teacher's map.
            student_sides: Those of each map of the student that is compared with it.
            patches: The student's rows and columns of patches; its heads may have several positions for each.
            shift: `(images, 2)` integers, rows and columns, in the student's patches: the teacher's crop minus the
                student's. None if both crops are the same.
            extent: `(images, 2, 2)` integers, for rows and for columns: the student's patch at which the image begins,
                and the first one behind its end. None if both crops lie within the image.
            is_extended: Whether the teacher's map is extended to the edge of its crop.
        """
        shown, last = None, torch.tensor(patches)
        both = torch.stack([torch.zeros_like(last), last], dim=1)[None]
        if extent is not None:
            both = torch.stack([extent[..., 0].clamp(min=0), torch.minimum(extent[..., 1], last)], dim=2)
            in_teachers_crop = extent if shift is None else extent - shift[:, :, None]
            shown = _shows_image(in_teachers_crop, sides, patches)
        overlaps = {own: _overlap(own, sides, patches, shift, extent, is_extended) for own in student_sides}
        seen = _shows_image(both if shift is None else both - shift[:, :, None], sides, patches)
        return cls(sides, shown, overlaps, seen, shift)

    def compare_cells(self, student: Tensor, teacher: Tensor) -> AlignedMaps:
        """Return the maps of a head that answers for the teacher's positions, as they are; shapes as in `apply`."""
        return AlignedMaps(student.float(), teacher.float(), self.seen.expand(len(student), -1, -1))

    def apply(self, student: Tensor, teacher: Tensor) -> AlignedMaps:
        """Return both maps on the larger of their two grids, one of them moved into the frame of the other.

        Args:
            student: `(batch, C, rows, cols)`, output of the teacher's dense head.
            teacher: `(batch, C, teacher_rows, teacher_cols)`, standardized features, without gradients.

        Returns:
            The aligned maps in float32.

        Raises:
            ValueError: If the alignment is for other maps.
        """
        overlap = self.overlaps.get((student.shape[2], student.shape[3]))
        if overlap is None or (teacher.shape[2], teacher.shape[3]) != self.sides:
            raise ValueError(
                f"`student` and `teacher` must have maps of {' or '.join(map(str, self.overlaps))} and of {self.sides} "
                f"rows and columns, got {tuple(student.shape[2:])} and {tuple(teacher.shape[2:])}. A teacher has a "
                "position for each patch (`patch_size`) of its input, a head as many for each of the student's as its "
                "`upsample_factor`, or one."
            )
        if overlap.extended is not None:
            teacher = _read_between(teacher.float(), *overlap.extended)
        student, teacher = on_larger_grid(student, teacher)
        if overlap.tokens is not None:
            teacher = _copy(teacher, overlap.tokens)
        if overlap.rows is not None and overlap.cols is not None:
            student = _read_between(student, overlap.rows, overlap.cols)
        return AlignedMaps(student, teacher, overlap.valid.expand(len(student), -1, -1))


def on_larger_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps `(batch, C, rows, cols)` of one crop in float32, resampled to the larger of their two grids."""
    grid = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
    return _resample(student.float(), grid), _resample(teacher.float(), grid)


def _overlap(
    student_sides: Sides,
    teacher_sides: Sides,
    patches: Sides,
    shift: Tensor | None,
    extent: Tensor | None,
    is_extended: bool,
) -> Overlap:
    grid = (max(student_sides[0], teacher_sides[0]), max(student_sides[1], teacher_sides[1]))
    is_copied = grid[0] % patches[0] == 0 and grid[1] % patches[1] == 0
    inside, student_positions, teacher_positions = [], [], []
    for axis, (length, count) in enumerate(zip(grid, patches, strict=True)):
        ours = theirs = torch.arange(length)[None]
        own_extent = their_extent = None if extent is None else extent[:, axis]
        if shift is not None:
            shifts = shift[:, axis, None]
            their_extent = None if own_extent is None else own_extent - shifts
            if is_copied:
                theirs = theirs - shifts * (length // count)
            else:
                ours = ours + shifts.double() * length / count
        is_readable = _is_readable(ours, student_sides[axis], length, count, own_extent)
        inside.append(is_readable & _is_readable(theirs, teacher_sides[axis], length, count, their_extent, is_extended))
        student_positions.append(ours)
        teacher_positions.append(theirs)
    valid = inside[0][:, :, None] & inside[1][:, None, :]
    extended = None
    if is_extended and grid != teacher_sides:
        extended = (_extension(teacher_sides[0], grid[0]), _extension(teacher_sides[1], grid[1]))
    if shift is None:
        return Overlap(valid, extended=extended)
    if is_copied:
        return Overlap(valid, tokens=_tokens_at(*teacher_positions), extended=extended)
    rows, cols = map(_interpolation_at, student_positions)
    return Overlap(valid, rows=rows, cols=cols, extended=extended)


def _shows_image(extent: Tensor, grid: Sides, patches: Sides) -> Tensor:
    """Return `(images, rows, cols)` bool: the positions of a crop's map that show nothing but the image.

    Args:
        extent: `(images, 2, 2)` (see `Alignment.of`), in this crop.
        grid: Rows and columns of the map.
        patches: The student's rows and columns of patches in a crop of this size.
    """
    rows, cols = (
        _is_readable(torch.arange(length)[None], length, length, count, extent[:, axis])
        for axis, (length, count) in enumerate(zip(grid, patches, strict=True))
    )
    return rows[:, :, None] & cols[:, None, :]


def _is_readable(
    positions: Tensor, num_own: int, length: int, num_patches: int, extent: Tensor | None, is_extended: bool = False
) -> Tensor:
    """Return where a resampled map can be read along an axis: between the outermost centers that show the image.

    Args:
        positions: `(batch or 1, length)` positions on the common grid, whole or not.
        num_own: Positions of the map before it was resampled.
        length: Positions of the common grid.
        num_patches: The student's patches, which cover as much as the map.
        extent: `(batch, 2)`: patches from the map's edge to where the image begins, and to where it ends.
        is_extended: Whether the map goes on to its edge where its two outermost positions show the image.
    """
    first, last = torch.tensor(0), torch.tensor(num_own - 1)
    if extent is not None:
        first = (-(-extent[:, :1] * num_own // num_patches)).clamp(min=0)
        last = (extent[:, 1:] * num_own // num_patches - 1).clamp(max=num_own - 1)
    # The center of own position n lies at (n + 1/2) length / num_own - 1/2 of the common grid: round to its inside.
    lower = -((num_own - (2 * first + 1) * length) // (2 * num_own))
    upper = ((2 * last + 1) * length - num_own) // (2 * num_own)
    if is_extended:
        lower = torch.where((first == 0) & (last > first), 0, lower)
        upper = torch.where((last == num_own - 1) & (last > first), length - 1, upper)
    return (positions >= lower) & (positions <= upper)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if features.shape[2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _tokens_at(rows: Tensor, cols: Tensor) -> Tensor:
    """Return the tokens at other positions of maps, counted over all images; the border is repeated outside.

    Args:
        rows: `(images, num_rows)` integers.
        cols: `(images, num_cols)` integers.
    """
    (images, num_rows), num_cols = rows.shape, cols.shape[1]
    rows, cols = rows.clamp(0, num_rows - 1)[:, :, None], cols.clamp(0, num_cols - 1)[:, None, :]
    first = torch.arange(images)[:, None, None] * num_rows
    return ((first + rows) * num_cols + cols).flatten().int()


def _copy(features: Tensor, tokens: Tensor) -> Tensor:
    """Return `(batch, C, rows, cols)` features read at other tokens, `(batch * rows * cols,)`."""
    batch, _, rows, cols = features.shape
    moved = features.movedim(1, -1).flatten(0, 2).index_select(0, tokens)  # (batch, C, rows, cols) -> (tokens, C)
    return moved.view(batch, rows, cols, -1).movedim(-1, 1)


def _interpolation_at(positions: Tensor) -> Interpolation:
    """Return where positions lie, `(images, length)` float64; the border is repeated outside."""
    last, lower = positions.shape[1] - 1, positions.floor()
    neighbors = ((lower + step).long().clamp(0, last) for step in (0, 1))
    return Interpolation(*neighbors, weight=(positions - lower).float())


def _extension(num_own: int, length: int) -> Interpolation:
    """Return where a map of `num_own` positions is read for `length`, from edge to edge, `(1, length)`."""
    positions = (torch.arange(length, dtype=torch.float64)[None] + 0.5) * num_own / length - 0.5
    lower = positions.floor().clamp(0, max(num_own - 2, 0))
    return Interpolation(lower.long(), (lower + 1).clamp(max=num_own - 1).long(), weight=(positions - lower).float())


def _read_between(features: Tensor, rows: Interpolation, cols: Interpolation) -> Tensor:
    """Return `(batch, C, rows, cols)` features interpolated linearly along rows, then along columns."""
    return _interpolate(_interpolate(features, rows, dim=2), cols, dim=3)


def _interpolate(features: Tensor, between: Interpolation, dim: int) -> Tensor:
    """Return `(batch, C, rows, cols)` features interpolated linearly along `dim`: 2 for rows, 3 for columns."""
    images, length = between.weight.shape
    shape, size = [images, 1, 1, 1], list(features.shape)
    shape[dim] = size[dim] = length
    lower, upper = (features.gather(dim, index.view(shape).expand(size)) for index in (between.lower, between.upper))
    weight = between.weight.view(shape)
    return lower * (1 - weight) + upper * weight
