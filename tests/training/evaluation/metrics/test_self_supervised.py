import pytest
import torch

from training.evaluation.metrics.self_supervised import lidar, rank_me


def test_rank_counts_directions():
    assert rank_me(torch.eye(6)) == pytest.approx(6, abs=1e-3)
    assert rank_me(torch.ones(6, 4)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dim", [6, 200])  # fewer and more dimensions than vectors
def test_lidar_counts_what_tells_images_apart(dim):
    """Of directions that vary between views alone nothing is counted, though a plain rank counts them."""
    images = torch.zeros(30, 1, dim)
    images[:, :, :3] = torch.randn(30, 1, 3)
    noise = torch.zeros(30, 5, dim)
    noise[:, :, 3:6] = torch.randn(30, 5, 3)
    value = lidar(images + noise + 1e-3 * torch.randn(30, 5, dim))
    assert value == pytest.approx(3, abs=0.5)
    assert rank_me((images + noise)[:, 0]) > 4.5


def test_one_view_is_not_enough():
    with pytest.raises(ValueError, match=r"`views` must be two or more views of two or more images, got \(3, 1, 4\)"):
        lidar(torch.zeros(3, 1, 4))
