import pytest
import torch

from training.losses.features import FEATURE_LOSSES
from training.losses.mixtures import chosen_loss


def test_a_name_is_the_loss_itself() -> None:
    assert chosen_loss("gram", FEATURE_LOSSES) is FEATURE_LOSSES["gram"]


def test_several_are_added_times_their_weights() -> None:
    maps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.ones(3, 2, 2, dtype=torch.bool)
    both = chosen_loss({"mse": 2.0, "gram": 0.25}, FEATURE_LOSSES)(*maps)
    expected = 2 * FEATURE_LOSSES["mse"](*maps) + 0.25 * FEATURE_LOSSES["gram"](*maps)
    assert both.tolist() == pytest.approx(expected.tolist())
    assert both.shape == (3,)
