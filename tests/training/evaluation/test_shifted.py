import pytest
import torch

from training.evaluation.models.base import Encoding
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.shifted import shifted_maps, window_of


class MeanColors:
    """The mean color of each patch, and through an adaptor its double."""

    patch_size, device = 8, torch.device("cpu")

    def preprocess(self, image, size_px=None):
        return image.float()

    def encode(self, pixels, adaptors=()):
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        return Encoding(None, means, {name: Encoding(None, means * 2) for name in adaptors})


@pytest.mark.parametrize("shifts", [1, 2, 4, 8])
def test_each_position_is_the_patch_around_it(shifts):
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
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    once, twice = (shifted_maps(model, images, size_px=32, shifts=shifts)[""] for shifts in (1, 2))
    pixels = torch.stack([model.preprocess(image, 32) for image in window_of(images, 32, model.patch_size)])
    with torch.no_grad():
        assert torch.equal(once, model.encode(pixels).features)
    assert not torch.equal(twice[..., ::2, ::2], once)


@pytest.mark.parametrize(("size_px", "shifts", "name"), [(32, 3, "shifts"), (24, 2, "images")])
def test_images_and_shifts_that_do_not_fit_are_refused(size_px, shifts, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        shifted_maps(MeanColors(), torch.zeros(1, 3, 40, 40, dtype=torch.uint8), size_px=size_px, shifts=shifts)
