import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.alignment import align_to_teacher, shows_image
from training.losses.features import mse_feature_loss


def crop(world: Tensor, row: int, col: int, side: int) -> Tensor:
    return world[:, :, row : row + side, col : col + side]


@pytest.mark.parametrize("shift", list(itertools.product([-2, 0, 1, 6], [-3, 0, 2])))
def test_loss_is_exactly_zero_for_a_student_that_equals_the_shifted_teacher(shift: tuple[int, int]) -> None:
    world = torch.randn(1, 3, 20, 20)
    student = crop(world, 7, 7, 6)
    teacher = crop(world, 7 + shift[0], 7 + shift[1], 6)
    maps = align_to_teacher(student, teacher, torch.tensor([shift]))
    assert mse_feature_loss(*maps).max() == 0
    assert maps.valid.sum() == max(6 - abs(shift[0]), 0) * max(6 - abs(shift[1]), 0)


@pytest.mark.parametrize("shift", [(1, 0), (-2, 1)])
def test_shift_counts_patches_where_a_head_gives_several_cells_for_each(shift: tuple[int, int]) -> None:
    world = torch.randn(1, 3, 40, 40)  # in half patches
    student, teacher = crop(world, 14, 14, 12), crop(world, 14 + 2 * shift[0], 14 + 2 * shift[1], 12)
    maps = align_to_teacher(student, teacher, torch.tensor([shift]), patches=(6, 6))
    assert mse_feature_loss(*maps).max() == 0
    assert maps.valid.sum() == (12 - 2 * abs(shift[0])) * (12 - 2 * abs(shift[1]))


def test_every_image_has_its_own_shift() -> None:
    world = torch.randn(3, 2, 12, 12)
    shifts = torch.tensor([[0, 1], [-2, 0], [1, -1]])
    teacher = torch.cat([crop(world[i : i + 1], 4 + int(r), 4 + int(c), 5) for i, (r, c) in enumerate(shifts)])
    maps = align_to_teacher(crop(world, 4, 4, 5), teacher, shifts)
    assert mse_feature_loss(*maps).max() == 0


def test_positions_outside_of_the_overlap_do_not_matter() -> None:
    student, teacher = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    changed = teacher.clone()
    changed[:, :, -1] = 1e6  # the last row of the teacher lies below the student's crop
    shift = torch.tensor([[1, 0]])
    losses = [mse_feature_loss(*align_to_teacher(student, maps, shift)).mean() for maps in (teacher, changed)]
    assert torch.equal(*losses)


def test_wrong_shift_is_noticed() -> None:
    world = torch.randn(1, 3, 20, 20)
    maps = align_to_teacher(crop(world, 7, 7, 6), crop(world, 8, 7, 6), torch.tensor([[-1, 0]]))
    assert mse_feature_loss(*maps).item() > 0.5


@pytest.mark.parametrize(("student_side", "teacher_side"), [(4, 8), (8, 4), (6, 9), (5, 5)])
def test_larger_grid_is_the_common_one(student_side: int, teacher_side: int) -> None:
    maps = align_to_teacher(
        torch.randn(2, 3, student_side, student_side), torch.randn(2, 3, teacher_side, teacher_side)
    )
    side = max(student_side, teacher_side)
    assert maps.student.shape == maps.teacher.shape == (2, 3, side, side)
    assert maps.valid.all() == (student_side == teacher_side)


def ramp_of(cells: int, top: float = 0.0, left: float = 0.0) -> Tensor:
    """Return the map of a crop of 6 x 6 units whose values grow with the row and, ten times as fast, the column."""
    places = (torch.arange(cells) + 0.5) * 6 / cells
    return ((top + places)[:, None] + 10 * (left + places))[None, None]


GRIDS = [(2, 6), (6, 18), (6, 9), (9, 6), (7, 6), (6, 6)]


@pytest.mark.parametrize(("student_side", "teacher_side"), GRIDS)
@pytest.mark.parametrize("shift", [None, (0, 0), (1, 0), (-1, 1)])
def test_a_perfect_student_errs_nowhere(student_side: int, teacher_side: int, shift: tuple[int, int] | None) -> None:
    """Of a ramp, interpolation says all there is between the centers of cells, and nothing beyond the outermost."""
    student, patch = ramp_of(student_side), 6 / student_side
    teacher = ramp_of(teacher_side, *(patch * each for each in shift or (0, 0)))
    maps = align_to_teacher(student, teacher, None if shift is None else torch.tensor([shift]))
    errors = (maps.student - maps.teacher).abs()[:, 0]
    assert errors[maps.valid].max() < 1e-4
    assert errors.max() > 0.1 or (student_side == teacher_side and shift in (None, (0, 0)))


@pytest.mark.parametrize(("student_side", "teacher_side"), GRIDS[1:])
@pytest.mark.parametrize("shift", [0, 1, -1])
def test_cells_beside_the_image_do_not_matter(student_side: int, teacher_side: int, shift: int) -> None:
    """The image begins with the second row of the student's patches: what lies above it could be anything."""
    patch = 6 / student_side
    student, teacher = ramp_of(student_side), ramp_of(teacher_side, shift * patch)
    shifts, extent = torch.tensor([[shift, 0]]), torch.tensor([[[1, 99], [-99, 99]]])
    plain = align_to_teacher(student, teacher, shifts)
    student[:, :, :1] = 1e6
    teacher[~shows_image(extent - shifts[..., None], teacher.shape[2:], student.shape[2:])[:, None]] = -1e6
    maps = align_to_teacher(student, teacher, shifts, extent=extent)
    assert (maps.student - maps.teacher).abs()[:, 0][maps.valid].max() < 1e-4
    assert 0 < maps.valid.sum() < plain.valid.sum() or shift == 1  # it begins within both crops, or with the teacher's


def test_cells_that_show_the_image_alone() -> None:
    extent = torch.tensor([[[1, 9], [-3, 2]]])
    shown = shows_image(extent, (6, 8), (4, 4))  # one and a half rows and two columns of cells for each patch
    assert shown[0].any(1).tolist() == [False, False, True, True, True, True]
    assert shown[0].any(0).tolist() == [True] * 4 + [False] * 4


def test_shift_counts_student_patches_on_a_finer_teacher_grid() -> None:
    # A linear ramp survives bilinear resampling away from the border; the teacher has two cells per student patch.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    fine_ramp = (torch.arange(16.0) / 2 - 0.25 + 2).expand(1, 1, 16, 16)  # shifted by two patches to the right
    maps = align_to_teacher(ramp, fine_ramp, torch.tensor([[0, 2]]))
    torch.testing.assert_close(maps.student[0, 0][maps.valid[0]], maps.teacher[0, 0][maps.valid[0]])
    assert maps.valid[0, 1].tolist() == [False] * 4 + [True] * 11 + [False]


def test_fractional_shift_interpolates() -> None:
    # Three teacher cells for two student patches: a shift of one patch is one and a half cells.
    student = torch.arange(6.0).expand(1, 1, 6, 6)
    maps = align_to_teacher(student, torch.zeros(1, 1, 9, 9), torch.tensor([[0, 1]]))
    resized = align_to_teacher(student, torch.zeros(1, 1, 9, 9)).student
    expected = (resized[..., 2] + resized[..., 3]) / 2
    torch.testing.assert_close(maps.student[..., 1], expected)


def test_gradient_flows_through_the_shift_to_the_overlap_only() -> None:
    student = torch.randn(1, 2, 4, 4, requires_grad=True)
    mse_feature_loss(*align_to_teacher(student, torch.randn(1, 2, 4, 4), torch.tensor([[1, 0]]))).mean().backward()
    assert student.grad is not None
    assert student.grad[:, :, 0].abs().max() == 0
    assert student.grad[:, :, 1:].abs().min() > 0


def moved_student(student: Tensor, teacher: Tensor, shift: Tensor) -> Tensor:
    """Return the loss as it is where the student's map is read, cell by cell, at the teacher's places."""
    grid = max(student.shape[-1], teacher.shape[-1])
    student_ring, teacher_ring = (int(maps.shape[-1] < grid) for maps in (student, teacher))  # for the factors below

    def pairs_of(shift: int) -> list[int]:
        places = range(teacher_ring, grid - teacher_ring)
        return [place for place in places if student_ring <= place + shift < grid - student_ring]

    factor = grid // student.shape[-1]
    student, teacher = (F.interpolate(maps, (grid, grid), mode="bilinear") for maps in (student, teacher))
    losses = []
    for image, (row, col) in enumerate((shift * factor).tolist()):
        rows, cols = pairs_of(row), pairs_of(col)
        pairs = [
            (student[image, :, place + row, other + col] - teacher[image, :, place, other]).square().mean()
            for place in rows
            for other in cols
        ]
        losses.append(torch.stack(pairs).mean() if pairs else student.new_zeros(()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("student_side", "teacher_side"), [(5, 5), (4, 8), (3, 9), (6, 4)])
def test_whole_cells_compare_the_same_pairs_with_the_same_gradient(student_side: int, teacher_side: int) -> None:
    student = torch.randn(4, 3, student_side, student_side, requires_grad=True)
    teacher = torch.randn(4, 3, teacher_side, teacher_side)
    shift = torch.tensor([[0, 0], [1, -2], [-1, 2], [9, 0]])
    expected = moved_student(student, teacher, shift)
    loss = mse_feature_loss(*align_to_teacher(student, teacher, shift)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (loss, expected)))


def test_whole_cells_leave_the_student_where_it_is() -> None:
    student, teacher = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4)
    maps = align_to_teacher(student, teacher, torch.tensor([[1, 0]]))
    assert maps.student is student
    assert torch.equal(maps.teacher[:, :, 1:], teacher[:, :, :-1])
    assert maps.valid[0, :, 0].tolist() == [False, True, True, True]
