"""Resized images become pixels in [0, 1] in one new tensor, and the given ones stay as they are."""

import pytest
import torch

from modeling_radio import RadioImageProcessor
from modeling_radio.image_processing_radio import to_pixels


RESCALED = {"do_rescale": True, "rescale_factor": 1 / 255}


def test_all_bytes_lie_in_the_range() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = to_pixels(every, RESCALED)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert torch.equal(pixels, every.float() * (1 / 255))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (torch.tensor([-1.0, 51.0, 256.0]), RESCALED),
        (torch.tensor([-0.1, 0.2, 1.1]), {"do_rescale": False, "rescale_factor": 1 / 255}),
        (torch.tensor([0, 20, 101], dtype=torch.uint8), {"do_rescale": True, "rescale_factor": 1 / 100}),
    ],
)
def test_overshoot_is_cut_and_the_input_kept(values: torch.Tensor, options: dict[str, object]) -> None:
    before = values.clone()
    assert to_pixels(values, options) == pytest.approx(torch.tensor([0, 0.2, 1]))
    assert torch.equal(values, before)


def test_an_image_of_the_right_size_is_a_copy() -> None:
    image = torch.rand(3, 32, 32)
    before = image.clone()
    processor = RadioImageProcessor(do_resize=False, do_rescale=False)
    processor(image, return_tensors="pt")["pixel_values"].zero_()
    processor(image, return_tensors=None)["pixel_values"][0].zero_()
    assert torch.equal(image, before)
