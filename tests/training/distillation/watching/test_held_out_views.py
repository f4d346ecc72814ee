import pytest
import tiny_distillation as tiny
import torch

from training.distillation.held_out import View
from training.recipe_sections import RunOptions


@pytest.mark.parametrize("size", [32, 48, 96, 128, 432])
def test_the_second_view_is_the_first_one_moved(size: int) -> None:
    view = View.of_size(size, 16)
    images = torch.randint(0, 256, (2, 3, view.whole_px, view.whole_px), dtype=torch.uint8)
    first, second = view.of_images(images)
    assert first.shape == second.shape == (2, 3, size, size)
    moved = view.shift * 16
    assert torch.equal(second[..., : size - moved, : size - moved], first[..., moved:, moved:])
    assert 1 <= view.shift < view.cells


def test_every_size_sees_the_same_share() -> None:
    """Marks at the edge of the view are at its edge at every size."""
    image = torch.zeros(1, 3, 640, 640, dtype=torch.uint8)
    image[..., 512:] = 255
    for size in (64, 128, 256, 512):
        first, second = View.of_size(size, 16).of_images(image)
        assert first[..., : size - 2].max() < 0.1
        dark = (second[0, 0, 0] < 0.5).float().mean()
        assert dark == pytest.approx(1 - 1 / 4, abs=1 / size)


def test_a_teacher_of_one_size_sees_its_own_pixels() -> None:
    view = View.of_size(32, 16)
    teacher = tiny.TinyTeacher("semantic", feature_dim=4)
    images = torch.randint(0, 256, (1, 3, 320, 320), dtype=torch.uint8)
    assert torch.equal(view.of_teacher(images, teacher), view.of_images(images)[0])
    teacher.set_run_mode(RunOptions(run_mode="fixed", input_size_px=128))
    seen = view.of_teacher(images, teacher)
    assert seen.shape[-2:] == (128, 128)
    assert torch.equal(seen, View(128, view.shift * 4, 16).of_images(images)[0])
