import pytest
import torch
from torch import Tensor

from modeling_radio.training.losses import mesa
from modeling_radio.training.losses.alignment import Alignment


def mesa_losses(student: Tensor, average: Tensor, shift: Tensor) -> Tensor:
    sides = (student.shape[2], student.shape[3])
    return mesa.mesa_losses(student, average, Alignment.of(sides, [sides], sides, shift))


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-3, 0), (2, 2)])
def test_mesa_is_zero_for_equal_networks_at_any_shift(shift: tuple[int, int]) -> None:
    world = torch.randn(1, 6, 12, 12)
    row, col = (3 + steps for steps in shift)
    student, average = world[:, :, 3:8, 3:8], world[:, :, row : row + 5, col : col + 5]
    assert mesa_losses(student, average, torch.tensor([shift])).item() == 0
    assert mesa_losses(student, average, torch.tensor([shift]) + 1).item() > 0.5


def test_mesa_compares_normalized_tokens() -> None:
    features, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    shift = torch.zeros(2, 2, dtype=torch.long)
    moved = 4 * features + torch.randn(2, 1, 3, 3)  # scale and mean of a token do not count
    assert mesa_losses(moved, features, shift).max().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(mesa_losses(moved, other, shift), mesa_losses(features, other, shift), atol=0, rtol=1e-4)
    # Tokens (-1, 1) and (1, -1) after normalization: every channel differs by 2.
    opposite = torch.tensor([[0.0, 9.0], [3.0, 1.0]]).view(2, 2, 1, 1)
    assert mesa_losses(opposite[:1], opposite[1:], shift[:1]).item() == pytest.approx(4, rel=1e-4)
    with pytest.raises(ValueError, match="same shape"):
        mesa_losses(features, other[:, :, :2], shift)
