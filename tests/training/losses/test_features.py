import pytest
import torch
from torch import Tensor

from training.losses.features import FEATURE_LOSSES, mse_feature_loss


def all_valid(features: Tensor) -> Tensor:
    return torch.ones(len(features), *features.shape[2:], dtype=torch.bool)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_feature_losses_are_zero_at_equality(name: str) -> None:
    features = torch.randn(2, 5, 3, 4)
    assert FEATURE_LOSSES[name](features, features, all_valid(features)).item() == pytest.approx(0, abs=1e-6)


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
