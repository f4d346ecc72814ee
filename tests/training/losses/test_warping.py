import itertools
import math

import pytest
import torch
from torch import Tensor

from training.losses.alignment import align_to_teacher
from training.losses.features import mse_feature_loss
from training.losses.warping import warp


def shifted(rows: float, cols: float, grid: tuple[int, int]) -> Tensor:
    """The homography from a crop that lies so many cells below and right of another to that other."""
    return torch.tensor([[[1, 0, cols / grid[1]], [0, 1, rows / grid[0]], [0, 0, 1]]], dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(6, 6), (7, 13), (14, 14)])
@pytest.mark.parametrize("shift", list(itertools.product([-2, 0, 1], [-3, 0, 2])))
def test_a_shift_by_whole_cells_copies_tokens_bit_for_bit(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    features = noise(1, 3, *grid)
    moved, inside = warp(features, shifted(*shift, grid), grid)
    for row, col in itertools.product(range(grid[0]), range(grid[1])):
        there = row + shift[0], col + shift[1]
        is_inside = 0 <= there[0] < grid[0] and 0 <= there[1] < grid[1]
        assert inside[0, row, col] == is_inside
        if is_inside:
            assert torch.equal(moved[0, :, row, col], features[0, :, there[0], there[1]])


@pytest.mark.parametrize("shift", list(itertools.product([-2, 0, 1], [-3, 0, 2])))
@pytest.mark.parametrize(("student_side", "teacher_side"), [(7, 7), (7, 14), (6, 9), (9, 6)])
def test_a_homography_that_is_a_shift_gives_the_loss_and_gradient_of_the_shift(
    shift: tuple[int, int], student_side: int, teacher_side: int
) -> None:
    teacher, found = noise(2, 3, teacher_side, teacher_side, seed=1), []
    shifts = torch.tensor([shift, (0, 0)])
    homographies = torch.cat([shifted(*each, (student_side, student_side)) for each in shifts.tolist()])
    for way in (shifts, homographies):
        student = noise(2, 3, student_side, student_side).requires_grad_()
        maps = align_to_teacher(student, teacher, way)
        losses = mse_feature_loss(*maps)
        losses.sum().backward()
        found.append((losses.detach(), student.grad, maps.valid.sum((1, 2))))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_pairs_of_a_whole_shift_are_those_of_the_shift_bit_for_bit() -> None:
    student, teacher, shift = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1), torch.tensor([[1, -2]])
    plain, warped = (align_to_teacher(student, teacher, way) for way in (shift, shifted(1, -2, (8, 8))))
    pairs = [
        {
            (*s.tolist(), *t.tolist())
            for s, t in zip(m.student[0][:, m.valid[0]].T, m.teacher[0][:, m.valid[0]].T, strict=True)
        }
        for m in (plain, warped)
    ]
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 7 * 6


def test_a_turn_by_a_quarter_is_exact() -> None:
    features = noise(2, 3, 5, 5)
    turn = torch.tensor([[0.0, 1, 0], [-1, 0, 1], [0, 0, 1]], dtype=torch.float64).expand(
        2, 3, 3
    )  # (x, y) -> (y, 1 - x)
    moved, inside = warp(features, turn, (5, 5))
    assert inside.all()
    assert torch.equal(moved, features.rot90(3, (2, 3)))


def test_linear_features_are_read_exactly_anywhere() -> None:
    """What is linear in the place survives bilinear reading, whatever the homography."""
    rows, cols = 9, 12
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols, indexing="ij")
    features = torch.stack([x, y])[None]
    angle = math.radians(20)
    tilt = torch.tensor(
        [[[0.7 * math.cos(angle), -0.7 * math.sin(angle), 0.3], [0.6 * math.sin(angle), 0.8, 0.05], [0.1, -0.2, 1]]],
        dtype=torch.float64,
    )
    moved, inside = warp(features, tilt, (6, 7))
    assert 0 < inside.sum() < inside.numel()
    for row, col in itertools.product(range(6), range(7)):
        place = tilt[0] @ torch.tensor([(col + 0.5) / 7, (row + 0.5) / 6, 1.0], dtype=torch.float64)
        place = (place / place[2])[:2]
        low, high = torch.tensor([0.5 / cols, 0.5 / rows]), torch.tensor([1 - 0.5 / cols, 1 - 0.5 / rows])
        assert inside[0, row, col] == bool(((place >= low) & (place <= high)).all())
        if inside[0, row, col]:
            torch.testing.assert_close(moved[0, :, row, col].double(), place, atol=1e-5, rtol=0)


def test_gradients_are_those_of_what_was_read() -> None:
    features = noise(1, 2, 4, 5).double().requires_grad_()
    way = torch.tensor([[[0.8, 0.1, 0.05], [-0.1, 0.9, 0.1], [0.05, 0.1, 1]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: warp(each, way, (4, 4))[0], features)


def test_what_lies_behind_is_not_seen() -> None:
    behind = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-2, 0, 1]]], dtype=torch.float64)  # depth 0 in the middle
    moved, inside = warp(noise(1, 2, 4, 4), behind, (4, 4))
    assert moved.isfinite().all()
    assert not inside[0, :, 2:].any()
