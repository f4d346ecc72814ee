import pytest
import torch

from training.evaluation.data import Stacked, Windows


def test_a_square_image_is_one_window():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    windows = Windows(Stacked(images), 16)
    assert len(windows) == 2
    assert torch.equal(windows[1], images[1])
    answer = torch.rand(5, 16, 16)
    assert windows.merged(1, [answer]) is answer


def test_windows_cover_a_long_image_by_two_thirds():
    gray = torch.arange(40, dtype=torch.uint8).expand(1, 3, 12, 40).contiguous()
    windows = Windows(Stacked(gray), 12)
    assert [place.left for place in windows.places] == [0, 8, 16, 24, 28]  # the last one ends where the image does
    assert windows.of_image(0) == [0, 1, 2, 3, 4]
    assert windows[4][0, 0].tolist() == list(range(28, 40))
    mask = torch.arange(40).expand(12, 40)
    assert windows.target(Stacked(mask[None]), 3)[0].tolist() == list(range(24, 36))


def test_merged_windows_are_the_mean_where_they_overlap():
    windows = Windows(Stacked(torch.zeros(1, 3, 4, 6, dtype=torch.uint8)), 4)
    first, second = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    merged = windows.merged(0, [first, second])
    assert [place.left for place in windows.places] == [0, 2]
    assert merged[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_images_are_resized_so_that_the_shorter_side_is_a_window():
    windows = Windows(Stacked(torch.zeros(1, 3, 30, 45, dtype=torch.uint8)), 20)
    assert windows.frames == [(20, 30)]
    assert windows[0].shape == (3, 20, 20)
    mask = torch.zeros(1, 30, 45, dtype=torch.long)
    mask[:, :, 30:] = 255
    assert windows.target(Stacked(mask), 1).unique().tolist() == [0, 255]  # nearest: no class in between


def test_a_mask_of_another_size_is_refused():
    windows = Windows(Stacked(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), 16)
    with pytest.raises(ValueError, match=r"must be as large as their images, got \(8, 16\) pixels beside \(16, 16\)"):
        windows.target(Stacked(torch.zeros(1, 8, 16)), 0)
