"""Maps of shifted images: laid between each other so that each cell says what is at its own place."""

import pytest
import torch

from training.evaluation.models.base import Encoding
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.shifted import shifted_maps, window_of


class MeanColors:
    """Says the mean color of each patch, and through an adaptor its double."""

    name, patch_size, size_px, max_size_px, device, adaptor_names = "colors", 8, 32, 99, torch.device("cpu"), ("twice",)

    def preprocess(self, image, size_px=None):
        return image.float()

    def encode(self, pixels, adaptors=()):
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        return Encoding(None, means, {name: Encoding(None, means * 2) for name in adaptors})


@pytest.mark.parametrize("shifts", [1, 2, 4, 8])
def test_each_cell_is_the_patch_around_its_place(shifts):
    ramp = torch.arange(40) * 6
    images = torch.stack([ramp[:, None].expand(40, 40), ramp[None].expand(40, 40), torch.zeros(40, 40).long()])
    maps = shifted_maps(MeanColors(), images[None].byte(), size_px=32, shifts=shifts, adaptors=["twice"])
    assert maps[""].shape == (1, 3, 4 * shifts, 4 * shifts)
    centers = (torch.arange(4 * shifts) + 0.5) * 8 / shifts  # in pixels of the middle 32
    expected = (centers + 4 - 0.5) * 6 - (3 if shifts == 8 else 0)  # steps of one pixel begin half a pixel off
    torch.testing.assert_close(maps[""][0, 0, :, 0], expected)
    torch.testing.assert_close(maps[""][0, 1, 0], expected)
    assert torch.equal(maps["twice"], 2 * maps[""])


def test_one_shift_is_the_model_itself(tiny_model):
    model = RadioFeatures(tiny_model, size_px=32)
    side = 32 + model.patch_size
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    once = shifted_maps(model, images, size_px=32, shifts=1)[""]
    pixels = torch.stack([model.preprocess(image, 32) for image in window_of(images, 32, model.patch_size)])
    with torch.no_grad():
        assert torch.equal(once, model.encode(pixels).features)
    twice = shifted_maps(model, images, size_px=32, shifts=2)[""]
    assert twice.shape[-1] == 2 * once.shape[-1]
    assert not torch.equal(twice[..., ::2, ::2], once)


def test_images_and_shifts_that_do_not_fit_are_refused():
    images = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"`shifts` must divide the 8 pixels of a patch, got 3"):
        shifted_maps(MeanColors(), images, size_px=32, shifts=3)
    with pytest.raises(ValueError, match=r"`images` must have sides of `size_px` and a patch, 32 pixels"):
        shifted_maps(MeanColors(), images, size_px=24, shifts=2)
