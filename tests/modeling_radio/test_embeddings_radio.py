"""Cropped position embeddings against torch's own sampling of an image."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioConfig
from modeling_radio.layers_radio import (
    MAX_CROP_ASPECT,
    MIN_CROP_AREA,
    POSITION_DRAWS,
    RESIZED_CHANNELS,
    RadioPatchGenerator,
    resize_position_table,
)


def sampled_as_an_image(table: Tensor, rows: int, cols: int, uniform: Tensor) -> Tensor:
    """Return what `sample_positions` shall return for a table `(side, side, hidden)`, by `grid_sample`."""
    scale = math.sqrt(MIN_CROP_AREA) + uniform[:, 0] * (1 - math.sqrt(MIN_CROP_AREA))
    aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(MAX_CROP_ASPECT))
    extent = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1)
    offset = uniform[:, 2:] * (1 - extent)
    x = torch.linspace(0, 1, cols) * extent[:, :1] + offset[:, :1]
    y = torch.linspace(0, 1, rows) * extent[:, 1:] + offset[:, 1:]
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    images = table.permute(2, 0, 1).expand(len(uniform), -1, -1, -1)
    return F.grid_sample(images, grid * 2 - 1, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("side", "rows", "cols"), [(16, 4, 7), (5, 12, 1), (1, 3, 2)])
def test_a_crop_is_sampled_as_an_image_is(side: int, rows: int, cols: int) -> None:
    torch.manual_seed(0)
    config = RadioConfig(hidden_size=12, num_attention_heads=3, max_img_size=16 * side, patch_size=16)
    generator = RadioPatchGenerator(config)
    torch.nn.init.normal_(generator.pos_embed)
    uniform = torch.rand(6, POSITION_DRAWS)
    uniform[0], uniform[1] = 0.0, 1 - 2**-24  # the smallest crop, top left, and the whole table
    table = generator.pos_embed.detach()[0].unflatten(0, (side, side)).requires_grad_()

    sampled = generator.sample_positions(rows, cols, uniform)
    expected = sampled_as_an_image(table, rows, cols, uniform)
    weights = torch.randn_like(expected)
    (sampled * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(generator.pos_embed.grad[0], table.grad.flatten(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(3, 5), (12, 12), (7, 20)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_some_channels_at_a_time_give_the_same_bits(
    dtype: torch.dtype, size: tuple[int, int], align_corners: bool
) -> None:
    """As of the whole table in float32, in one piece."""
    table = torch.randn(1, 12, 12, 2 * RESIZED_CHANNELS + 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = table.float().permute(0, 3, 1, 2).contiguous()
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=align_corners).flatten(2).transpose(1, 2)
    assert torch.equal(resize_position_table(table, *size, align_corners), expected)
