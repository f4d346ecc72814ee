import numpy as np
import pytest
import torch
from photographs import picture
from PIL import Image

from training.data.decoding import to_tensor
from training.views.moving.quadrangles import cut_quadrangle, extent


def test_a_turned_square_shows_what_lies_under_it() -> None:
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256)[:, None], np.arange(256)[None]  # red: the row, green: the column
    corners = np.array([[128.0, 28], [228, 128], [128, 228], [28, 128]])  # on its tip
    seen = to_tensor(cut_quadrangle(Image.fromarray(ramp), corners, (50, 50))).float()
    places = (torch.arange(50) + 0.5) / 50
    y, x = torch.meshgrid(places, places, indexing="ij")
    torch.testing.assert_close(seen[0], 28 + 100 * (x + y) - 0.5, atol=1.6, rtol=0)
    torch.testing.assert_close(seen[1], 128 + 100 * (x - y) - 0.5, atol=1.6, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (64, 96), (200, 300)])
def test_an_upright_rectangle_is_what_one_resizing_gives(size: tuple[int, int]) -> None:
    image = picture(0, 960, 640)
    corners = np.array([[96.0, 64], [672, 64], [672, 448], [96, 448]])
    seen = to_tensor(cut_quadrangle(image, corners, size)).float()
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(96, 64, 672, 448))
    assert (seen - to_tensor(resized)).abs().mean() < 1.0


def test_fine_stripes_average_out() -> None:
    """Read at single points, as Pillow's transform does, they would stay black and white."""
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    corners = np.array([[100.0, 150], [650, 100], [700, 650], [150, 700]])
    seen = to_tensor(cut_quadrangle(Image.fromarray(stripes), corners, (40, 40))).float()
    assert (seen - 127.5).abs().max() < 12


def test_extent_is_that_of_the_shorter_sides() -> None:
    assert extent(np.array([[0.0, 0], [10, 0], [8, 5], [0, 6]])) == pytest.approx((29**0.5, 65**0.5))
