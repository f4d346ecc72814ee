import math

import pytest
import torch

from modeling_radio.training.losses.summaries import SUMMARY_LOSSES


ONE, HALF = torch.tensor(1.0), torch.tensor(0.5)
SQUARED_ANGLES = ((math.pi / 2) ** 2 + (math.pi / 4) ** 2) / 2
EXPECTED = {"balanced": SQUARED_ANGLES / 0.5, "angle": SQUARED_ANGLES, "cosine": (1 + 1 - 0.5**0.5) / 2}


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_summary_losses_by_hand(name: str) -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    loss = SUMMARY_LOSSES[name]
    assert loss(student, teacher, HALF).item() == pytest.approx(EXPECTED[name], rel=1e-5)
    assert loss(3 * student, student, ONE).item() == pytest.approx(0, abs=1e-5)  # the length does not matter
    with pytest.raises(ValueError, match="same shape"):
        loss(torch.ones(1, 2), torch.ones(1, 3), ONE)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
@pytest.mark.parametrize("angle", [0.0, 0.6, math.pi])
def test_gradients_are_finite_even_at_parallel_and_opposite_vectors(name: str, angle: float) -> None:
    student = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    SUMMARY_LOSSES[name](student, torch.tensor([[1.0, 0.0]]), HALF).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0 or angle != 0.6
