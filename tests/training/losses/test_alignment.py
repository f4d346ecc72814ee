import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.training.losses.alignment import AlignedMaps, Alignment
from modeling_radio.training.losses.features import mse_feature_loss


def align(
    student: Tensor,
    teacher: Tensor,
    shift: Tensor | None = None,
    patches: tuple[int, int] | None = None,
    extent: Tensor | None = None,
    *,
    is_extended: bool = False,
) -> AlignedMaps:
    sides, own = tuple(teacher.shape[2:]), tuple(student.shape[2:])
    return Alignment.of(sides, [own], patches or own, shift, extent, is_extended=is_extended).apply(student, teacher)


SHIFTS = list(itertools.product([-2, 0, 1, 6], [-3, 0, 2]))


@pytest.mark.parametrize("positions_per_patch", [1, 2])
def test_student_that_equals_the_shifted_teacher_has_no_loss(positions_per_patch: int) -> None:
    """Every image has its own shift; shifts count patches, whatever the number of positions in each."""
    side, shifts = 6 * positions_per_patch, torch.tensor(SHIFTS)
    world = torch.randn(len(SHIFTS), 3, 4 * side, 4 * side)
    student, corner = world[:, :, side : 2 * side, side : 2 * side], side + positions_per_patch * shifts
    crops = [each[:, row : row + side, col : col + side] for each, (row, col) in zip(world, corner, strict=True)]
    maps = align(student, torch.stack(crops), shifts, patches=(6, 6))
    assert mse_feature_loss(*maps).tolist() == [0.0] * len(SHIFTS)
    overlaps = (side - positions_per_patch * shifts.abs()).clamp(min=0).prod(1)
    assert torch.equal(maps.valid.sum((1, 2)), overlaps)
    wrong = mse_feature_loss(*align(student, torch.stack(crops), shifts - 1, patches=(6, 6)))
    assert (wrong[overlaps > 4 * positions_per_patch**2] > 0.3).all()


def ramp_of(num_positions: int | tuple[int, int], top: float = 0.0, left: float = 0.0) -> Tensor:
    """Return the map of a crop of 6 x 6 units whose values grow with the row and, ten times as fast, the column."""
    sides = (num_positions, num_positions) if isinstance(num_positions, int) else num_positions
    rows, cols = ((torch.arange(side) + 0.5) * 6 / side for side in sides)
    return ((top + rows)[:, None] + 10 * (left + cols))[None, None]


GRIDS = [(2, 6), (6, 18), (6, 9), (9, 6), (7, 6), (6, 6)]


@pytest.mark.parametrize(("student_side", "teacher_side"), GRIDS)
@pytest.mark.parametrize("shift", [None, (0, 0), (1, 0), (-1, 1)])
def test_perfect_student_errs_nowhere(student_side: int, teacher_side: int, shift: tuple[int, int] | None) -> None:
    """Interpolation is exact for a ramp between the centers of positions, and wrong beyond the outermost ones."""
    student, patch = ramp_of(student_side), 6 / student_side
    teacher = ramp_of(teacher_side, *(patch * each for each in shift or (0, 0)))
    maps = align(student, teacher, None if shift is None else torch.tensor([shift]))
    assert maps.student.shape[2] == maps.teacher.shape[2] == max(student_side, teacher_side)
    errors = (maps.student - maps.teacher).abs()[:, 0]
    assert errors[maps.valid].max() < 1e-4
    assert errors.max() > 0.1 or (student_side == teacher_side and shift in (None, (0, 0)))


@pytest.mark.parametrize(
    ("student_sides", "teacher_sides"), [((27, 27), (24, 24)), ((21, 28), (24, 24)), ((9, 9), (2, 1))]
)
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1)])
def test_extended_teacher_is_exact_up_to_the_edge_of_its_crop(
    student_sides: tuple[int, int], teacher_sides: tuple[int, int], shift: tuple[int, int]
) -> None:
    """The first case is SigLIP2 at 432 px, the second at 384 px and 3:4; a single column cannot be extended."""
    starts = [6 / own * step for own, step in zip(student_sides, shift, strict=True)]
    student, teacher = ramp_of(student_sides), ramp_of(teacher_sides, *starts)
    masked, extended = (align(student, teacher, torch.tensor([shift]), is_extended=each) for each in (False, True))
    errors = (extended.student - extended.teacher).abs()[:, 0]
    assert errors[extended.valid].max() < 1e-3
    for axis, (own, other, step) in enumerate(zip(student_sides, teacher_sides, shift, strict=True)):
        seen, before = (maps.valid[0].any(1 - axis) for maps in (extended, masked))
        if own > other > 1:
            assert before.sum() < seen.sum() == len(seen) - abs(step)
        else:
            assert torch.equal(seen, before)


@pytest.mark.parametrize(("student_side", "teacher_side"), GRIDS[1:])
@pytest.mark.parametrize("shift", [0, 1, -1])
@pytest.mark.parametrize("is_extended", [False, True])
def test_positions_beside_the_image_do_not_matter(
    student_side: int, teacher_side: int, shift: int, is_extended: bool
) -> None:
    """The image begins at the second row of the student's patches: the values above it could be any."""
    student, teacher = ramp_of(student_side), ramp_of(teacher_side, shift * 6 / student_side)
    shifts, extent = torch.tensor([[shift, 0]]), torch.tensor([[[1, 99], [-99, 99]]])
    plain = align(student, teacher, shifts, is_extended=is_extended)
    student[:, :, :1] = 1e6
    shown = Alignment.of(tuple(teacher.shape[2:]), [], tuple(student.shape[2:]), shifts, extent).shown
    teacher[~shown[:, None]] = -1e6
    maps = align(student, teacher, shifts, extent=extent, is_extended=is_extended)
    assert (maps.student - maps.teacher).abs()[:, 0][maps.valid].max() < 1e-4
    assert 0 < maps.valid.sum() < plain.valid.sum() or shift == 1  # it begins within both crops, or with the teacher's


def test_positions_that_show_nothing_but_the_image() -> None:
    extent = torch.tensor([[[1, 9], [-3, 2]]])
    shown = Alignment.of((6, 8), [], (4, 4), extent=extent).shown  # 1.5 rows and 2 columns for each patch
    assert shown[0].any(1).tolist() == [False, False, True, True, True, True]
    assert shown[0].any(0).tolist() == [True] * 4 + [False] * 4


def loss_by_pairs(student: Tensor, teacher: Tensor, shift: Tensor) -> Tensor:
    """Return the loss where the student's map is read, position by position, at the teacher's positions."""
    grid = max(student.shape[-1], teacher.shape[-1])
    student_ring, teacher_ring = (int(maps.shape[-1] < grid) for maps in (student, teacher))  # for the factors below

    def rows_of(shift: int) -> list[int]:
        return [
            row for row in range(teacher_ring, grid - teacher_ring) if student_ring <= row + shift < grid - student_ring
        ]

    factor = grid // student.shape[-1]
    student, teacher = (F.interpolate(maps, (grid, grid), mode="bilinear") for maps in (student, teacher))
    losses = []
    for image, (down, right) in enumerate((shift * factor).tolist()):
        pairs = [
            (student[image, :, row + down, col + right] - teacher[image, :, row, col]).square().mean()
            for row in rows_of(down)
            for col in rows_of(right)
        ]
        losses.append(torch.stack(pairs).mean() if pairs else student.new_zeros(()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("student_side", "teacher_side"), [(5, 5), (4, 8), (3, 9), (6, 4)])
def test_whole_shifts_compare_the_same_pairs_with_the_same_gradient(student_side: int, teacher_side: int) -> None:
    student = torch.randn(4, 3, student_side, student_side, requires_grad=True)
    teacher = torch.randn(4, 3, teacher_side, teacher_side)
    shift = torch.tensor([[0, 0], [1, -2], [-1, 2], [9, 0]])
    expected = loss_by_pairs(student, teacher, shift)
    maps = align(student, teacher, shift)
    assert maps.student is student or student_side != max(student_side, teacher_side)  # the student's is not moved
    loss = mse_feature_loss(*maps).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (loss, expected)))


def test_maps_of_other_sizes_are_refused() -> None:
    alignment = Alignment.of((4, 8), [(4, 4), (8, 8)], (4, 4))
    teacher = torch.randn(2, 3, 4, 8)
    for side in (4, 8):
        assert alignment.apply(torch.randn(2, 3, side, side), teacher).valid.shape == (2, side, 8)
    for student, other in ((torch.randn(2, 3, 6, 6), teacher), (torch.randn(2, 3, 4, 4), teacher[..., :7])):
        with pytest.raises(ValueError, match="`student` and `teacher`"):
            alignment.apply(student, other)
