import math

import pytest
import torch
from torch import Tensor

from training.losses.features import FEATURE_LOSSES, mse_feature_loss
from training.losses.mesa import mesa_loss
from training.losses.summaries import SUMMARY_LOSSES, balanced_summary_loss, cosine_summary_loss


ONE = torch.ones(())


def all_valid(features: Tensor) -> Tensor:
    return torch.ones(len(features), *features.shape[2:], dtype=torch.bool)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_feature_losses_are_zero_at_equality(name: str) -> None:
    features = torch.randn(2, 5, 3, 4)
    assert FEATURE_LOSSES[name](features, features, all_valid(features)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_summary_losses_vanish_for_parallel_vectors(name: str) -> None:
    summary = torch.randn(4, 8)
    assert SUMMARY_LOSSES[name](3 * summary, summary, ONE).item() == pytest.approx(0, abs=1e-5)


def test_mse_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # squared errors 0, 4, 9, 16
    assert mse_feature_loss(student, teacher, all_valid(student)).item() == 29 / 4
    valid = torch.tensor([[[True, True], [False, True]]])
    assert mse_feature_loss(student, teacher, valid).item() == pytest.approx(20 / 3)


def test_mse_weighs_images_not_tokens() -> None:
    student, teacher = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    student[1] = 3.0
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[1, 0] = valid[1, 1, 0] = False
    assert mse_feature_loss(student, teacher, valid).item() == (1 + 9) / 2


def test_image_without_overlap_counts_as_zero_without_nan() -> None:
    student = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = mse_feature_loss(student, torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(1, 1, 2, 2))


def test_balanced_summary_loss_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    expected = ((math.pi / 2) ** 2 + (math.pi / 4) ** 2) / 2 / 0.5
    assert balanced_summary_loss(student, teacher, torch.tensor(0.5)).item() == pytest.approx(expected, rel=1e-5)
    assert cosine_summary_loss(student, teacher, ONE).item() == pytest.approx((1 + 1 - 0.5**0.5) / 2, rel=1e-5)


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradient_is_finite_at_parallel_and_opposite_vectors(angle: float) -> None:
    student = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    balanced_summary_loss(student, torch.tensor([[1.0, 0.0]]), ONE).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_gradient_reaches_the_student_only() -> None:
    student, teacher = torch.randn(2, 4, 2, 2, requires_grad=True), torch.randn(2, 4, 2, 2)
    for loss in FEATURE_LOSSES.values():
        student.grad = None
        loss(student, teacher, all_valid(teacher)).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_bfloat16_inputs_are_compared_in_float32(name: str) -> None:
    student, teacher = torch.randn(1, 4, 2, 2).bfloat16(), torch.randn(1, 4, 2, 2)
    assert FEATURE_LOSSES[name](student, teacher, all_valid(teacher)).dtype == torch.float32


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        mse_feature_loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 3, 3), torch.ones(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="same shape"):
        balanced_summary_loss(torch.ones(1, 2), torch.ones(1, 3), ONE)


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-3, 0), (2, 2)])
def test_mesa_is_zero_for_equal_networks_at_any_shift(shift: tuple[int, int]) -> None:
    world = torch.randn(1, 6, 12, 12)
    row, col = (3 + steps for steps in shift)
    student, average = world[:, :, 3:8, 3:8], world[:, :, row : row + 5, col : col + 5]
    assert mesa_loss(student, average, torch.tensor([shift])).item() == 0
    assert mesa_loss(student, average, torch.tensor([shift]) + 1).item() > 0.5


def test_mesa_compares_normalised_tokens() -> None:
    features, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    shift = torch.zeros(2, 2, dtype=torch.long)
    moved = 4 * features + torch.randn(2, 1, 3, 3)  # scale and mean of a token do not count
    assert mesa_loss(moved, features, shift).item() == pytest.approx(0, abs=1e-6)
    assert mesa_loss(moved, other, shift).item() == pytest.approx(mesa_loss(features, other, shift).item(), rel=1e-4)
    # Tokens (-1, 1) and (1, -1) after normalization: every channel differs by 2.
    opposite = torch.tensor([[0.0, 9.0], [3.0, 1.0]]).view(2, 2, 1, 1)
    assert mesa_loss(opposite[:1], opposite[1:], shift[:1]).item() == pytest.approx(4, rel=1e-4)


def test_mesa_needs_equal_shapes() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        mesa_loss(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4), torch.zeros(1, 2))
