"""Parts of data sets, crops and windows of images."""

import pytest
import torch

from modeling_radio.core.opening import tensor_fingerprint
from modeling_radio.evaluation.data import CroppedViews, Stacked, Windows


def test_a_fingerprint_is_of_every_byte_of_shape_and_of_type():
    values = torch.zeros(10_000)
    before = tensor_fingerprint(values)
    assert tensor_fingerprint(values.clone()) == before
    values[4321] = 1e-6
    others = [values, values.reshape(100, 100), values.bfloat16()]
    assert len({before, *map(tensor_fingerprint, others), tensor_fingerprint(values, torch.tensor(3))}) == 5


def test_views_are_the_middle_square_and_crops_at_known_places():
    columns = torch.arange(100, dtype=torch.uint8).expand(2, 3, 60, 100).contiguous()
    views = CroppedViews(Stacked(columns), 3, seed=0)
    assert len(views) == 8
    assert views[4][0].shape == (60, 60)
    assert views[4][0, 0].tolist() == list(range(20, 80))
    for index in views.views_of(1)[1:]:
        top, left, side = views.box(index)
        view = views[index]
        assert views.size(index) == tuple(view.shape[1:])
        assert 0.5 <= side <= 1
        assert max(top, left) + side <= 1 + 1e-9
        assert abs(view[0, 0, 0].item() - (20 + left * 60)) <= 1
        assert abs(view.shape[1] - side * 60) <= 1
    assert torch.equal(views[5], CroppedViews(Stacked(columns), 3, seed=0)[5])
    assert views.box(5) != CroppedViews(Stacked(columns), 3, seed=1).box(5)


def test_windows_cover_a_long_image_by_two_thirds():
    gray = torch.arange(40, dtype=torch.uint8).expand(1, 3, 12, 40).contiguous()
    windows = Windows(Stacked(gray), 12)
    assert [place.left for place in windows.positions] == [0, 8, 16, 24, 28]  # the last one ends where the image does
    assert windows.of_image(0) == [0, 1, 2, 3, 4]
    assert windows[4][0, 0].tolist() == list(range(28, 40))
    mask = torch.arange(40).expand(12, 40)
    assert windows.target(Stacked(mask[None]), 3)[0].tolist() == list(range(24, 36))


def test_merged_windows_are_the_mean_where_they_overlap():
    windows = Windows(Stacked(torch.zeros(1, 3, 4, 6, dtype=torch.uint8)), 4)
    merged = windows.merged(0, [torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert merged[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_images_are_resized_so_that_the_shorter_side_is_a_window():
    windows = Windows(Stacked(torch.zeros(1, 3, 30, 45, dtype=torch.uint8)), 20)
    assert windows.frames == [(20, 30)]
    assert windows[0].shape == (3, 20, 20)
    mask = torch.zeros(1, 30, 45, dtype=torch.long)
    mask[:, :, 30:] = 255
    assert windows.target(Stacked(mask), 1).unique().tolist() == [0, 255]  # nearest: no class in between
    with pytest.raises(ValueError, match=r"got \(8, 16\)"):
        windows.target(Stacked(torch.zeros(1, 8, 16)), 0)
