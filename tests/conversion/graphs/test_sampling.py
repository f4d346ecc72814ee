"""Sampling by gathers gives what `F.grid_sample` gives."""

import pytest
import torch
import torch.nn.functional as F

from modeling_radio.conversion.graphs.sampling import GatheredSamples, gather_samples


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 3)])
def test_gathers_equal_grid_sample(size):
    images, points = torch.randn(3, 4, *size), 3 * torch.rand(3, 6, 2, 2) - 1.5  # some outside of the images
    points[0, 0] = torch.tensor([[-1.0, 1.0], [0.0, 0.0]])
    expected = F.grid_sample(images, points, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(gather_samples(images, points), expected, rtol=0, atol=1e-5)


def test_every_way_to_write_that_call_is_replaced():
    images, points = torch.randn(1, 2, 4, 4), torch.rand(1, 3, 3, 2)
    expected = gather_samples(images, points)
    with GatheredSamples():
        for call in (
            F.grid_sample(images, points),
            F.grid_sample(images, grid=points, align_corners=False),
            F.grid_sample(images, points, "bilinear", "zeros", False),
        ):
            assert torch.equal(call, expected)


def test_other_kinds_of_sampling_stay():
    images, points = torch.randn(1, 2, 4, 4), 3 * torch.rand(1, 3, 3, 2) - 1.5
    for options in (
        {"mode": "bilinear", "padding_mode": "border", "align_corners": False},
        {"mode": "nearest", "padding_mode": "zeros", "align_corners": False},
        {"mode": "bilinear", "padding_mode": "zeros", "align_corners": True},
    ):
        expected = F.grid_sample(images, points, **options)
        with GatheredSamples():
            assert torch.equal(F.grid_sample(images, points, **options), expected)
