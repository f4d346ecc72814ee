import math

import pytest
import torch

from training.losses.summaries import (
    SUMMARY_LOSSES,
    angle_summary_loss,
    balanced_summary_loss,
    cosine_summary_loss,
)


ONE, HALF = torch.tensor(1.0), torch.tensor(0.5)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_summary_losses_vanish_for_parallel_vectors(name: str) -> None:
    summary = torch.randn(4, 8)
    assert SUMMARY_LOSSES[name](3 * summary, summary, ONE).item() == pytest.approx(0, abs=1e-5)


def test_balanced_summary_loss_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    expected = ((math.pi / 2) ** 2 + (math.pi / 4) ** 2) / 2 / 0.5
    assert balanced_summary_loss(student, teacher, HALF).item() == pytest.approx(expected, rel=1e-5)
    assert angle_summary_loss(student, teacher, HALF).item() == pytest.approx(expected * 0.5, rel=1e-5)
    assert cosine_summary_loss(student, teacher, ONE).item() == pytest.approx((1 + 1 - 0.5**0.5) / 2, rel=1e-5)


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradient_is_finite_at_parallel_and_opposite_vectors(angle: float) -> None:
    student = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    balanced_summary_loss(student, torch.tensor([[1.0, 0.0]]), ONE).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        balanced_summary_loss(torch.ones(1, 2), torch.ones(1, 3), ONE)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_gradients_are_finite(name: str) -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    SUMMARY_LOSSES[name](student, torch.tensor([[0.6, 0.8], [0.6, 0.8]]), HALF).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
