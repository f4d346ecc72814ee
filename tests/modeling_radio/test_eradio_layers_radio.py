"""E-RADIO's position bias is Swin v2's, and windows see nothing of each other."""

import pytest
import torch

from modeling_radio.eradio_radio import EradioAttentionBlock, EradioConvolutions, EradioPositionBias


@torch.no_grad()
def test_bias_depends_on_the_offset_alone():
    bias = EradioPositionBias(num_heads=2, hidden_size=8, trained_window=4)(3).view(2, 3, 3, 3, 3)
    assert bias.min() > 0
    assert bias.max() < 16
    torch.testing.assert_close(bias[:, 0, 0, 1, 1], bias[:, 1, 1, 2, 2])
    torch.testing.assert_close(bias[:, 0, 0, 0, 1], bias[:, 2, 1, 2, 2])
    assert not torch.allclose(bias[:, 0, 0, 0, 1], bias[:, 0, 1, 0, 0])


def test_coordinates_are_in_units_of_the_trained_window():
    module = EradioPositionBias(num_heads=1, hidden_size=4, trained_window=4)
    coordinates = module.coordinates(4)[:, 0, 0]
    expected = torch.tensor([-3.0, -2, -1, 0, 1, 2, 3]) / 3 * 8
    torch.testing.assert_close(coordinates, expected.sign() * (expected.abs() + 1).log2() / 3)
    torch.testing.assert_close(module.coordinates(2)[:, 0, 0], coordinates[2:5])
    assert torch.isfinite(EradioPositionBias(1, 4, trained_window=1).coordinates(1)).all()


@pytest.mark.parametrize(("ratio", "reach"), [(1, 4), (2, 8)])
@torch.no_grad()
def test_windows_see_nothing_of_each_other(ratio, reach):
    torch.manual_seed(0)
    block = EradioAttentionBlock(8, 2, 2.0, 4, trained_window=4, ratio=ratio).eval()
    maps = torch.rand(1, 8, 16, 16)
    changed = maps.clone()
    changed[..., reach + 1 :, reach + 1 :] = 0  # one cell apart, which a convolution of three reaches over
    before, after = block(maps, 4), block(changed, 4)
    assert torch.equal(before[..., :reach, :reach], after[..., :reach, :reach])
    assert not torch.equal(before[..., reach:, reach:], after[..., reach:, reach:])


def test_convolutions_keep_the_shape():
    assert EradioConvolutions(8, depth=3)(torch.rand(2, 8, 4, 6)).shape == (2, 8, 4, 6)
