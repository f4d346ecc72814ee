import pytest
import torch
from torch.nn import functional as F

from training.upsampling.views import WHOLE, View, ViewReader, draw_view, view_of_image, view_of_map


def test_views_lie_inside_and_differ():
    views = [draw_view(4096, 0, index, number) for index in range(8) for number in range(8)]
    assert len(set(views)) == 64
    assert {view.is_mirrored for view in views} == {False, True}
    for view in views:
        assert 0.5 <= view.side <= 1
        assert min(view.top, view.left) >= 0
        assert max(view.top, view.left) + view.side <= 1
    assert draw_view(4096, 0, 3, 5) == views[3 * 8 + 5]
    assert draw_view(4096, 1, 3, 5) != views[3 * 8 + 5]


def test_views_may_be_as_small_as_tiles():
    views = [draw_view(4096, 0, number, largest=0.5) for number in range(8)]
    assert {view.side for view in views} == {0.5}
    assert len(set(views)) == 8


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_map_is_seen_where_the_image_is(is_mirrored):
    image = F.interpolate(torch.rand(1, 3, 5, 5), 64, mode="bicubic").clamp(0, 1)
    view = View(8 / 64, 16 / 64, 40 / 64, is_mirrored)
    seen = F.avg_pool2d(view_of_map(image, [view], 32), 4)
    pixels = F.interpolate(view_of_image(image, view, 40), 8, mode="area")
    torch.testing.assert_close(seen, pixels, atol=0.01, rtol=0)
    other = view._replace(is_mirrored=not is_mirrored)
    assert (F.avg_pool2d(view_of_map(image, [other], 32), 4) - pixels).abs().mean() > 0.02


@torch.no_grad()
def test_a_new_reader_takes_the_mean_and_a_trained_one_chooses():
    maps = torch.randn(2, 5, 16, 16)
    reader = ViewReader(5)
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), F.avg_pool2d(view_of_map(maps, [WHOLE] * 2, 16), 4))
    reader.place[0] = 30  # the first of each cell's samples
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), maps[:, :, ::4, ::4], atol=1e-4, rtol=0)
