import pytest
import torch
from photographs import picture
from PIL import Image

from training.data.decoding import to_tensor
from training.views.on_device.resampling import resize_box


@pytest.mark.parametrize("size", [(16, 24), (64, 64), (224, 200), (700, 900)])
@pytest.mark.parametrize(
    "box", [(0, 0, 400, 600), (10.3, 17.8, 311.9, 405.25), (0.0, 300.5, 100.0, 600.0), (5, 5, 25, 40)]
)
def test_pixels_are_pillows_up_to_rounding(size: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    image = picture(3, 600, 400)
    top, left, bottom, right = box
    theirs = to_tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
    ours = resize_box(to_tensor(image), box, size)
    assert ours.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 2  # Pillow rounds between rows and columns
    assert difference.float().mean() < 0.25


def test_noise_is_read_alike() -> None:
    noise = torch.randint(0, 256, (3, 120, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.movedim(0, -1).numpy())
    theirs = to_tensor(image.resize((31, 17), Image.Resampling.BICUBIC, box=(3.5, 2.25, 80.0, 119.5)))
    assert (resize_box(noise, (2.25, 3.5, 119.5, 80.0), (17, 31)).int() - theirs.int()).abs().max() <= 2
