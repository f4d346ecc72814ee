import torch

from training.evaluation.models.base import FeatureModel
from training.evaluation.models.pretrained import RawPixels, random_vit


def test_pixels_keep_every_pixel_of_a_patch():
    model = RawPixels(patch_size=8, size_px=16)
    assert isinstance(model, FeatureModel)
    image = torch.arange(3 * 16 * 24).reshape(3, 16, 24).remainder(256).to(torch.uint8)
    pixels = model.preprocess(image)
    encoding = model.encode(pixels[None])
    assert encoding.summary.shape == (1, 3 * 32 * 32)
    patch = encoding.features[0, :, 1, 2]
    assert torch.equal((patch * 255).round().to(torch.uint8), image[:, 8:16, 16:24].flatten())


def test_pixels_are_shrunk_to_the_asked_side():
    assert RawPixels(8, 16).preprocess(torch.zeros(3, 64, 100, dtype=torch.uint8)).shape == (3, 16, 24)
    assert RawPixels(8, 16).preprocess(torch.zeros(3, 64, 100, dtype=torch.uint8), 32).shape == (3, 32, 48)


def test_a_random_network_depends_on_its_seed_and_disturbs_no_other(tiny_model):
    before = torch.random.get_rng_state()
    models = [random_vit(tiny_model.config, size_px=32, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    pixels = torch.rand(1, 3, 32, 32)
    summaries = [model.encode(pixels).summary for model in models]
    assert torch.equal(summaries[0], summaries[1])
    assert not torch.allclose(summaries[0], summaries[2])
    assert summaries[0].shape[0] == 1
    assert models[0].adaptor_names == ()
    assert random_vit(tiny_model.config, size_px=32, device=torch.device("meta")).device.type == "meta"
