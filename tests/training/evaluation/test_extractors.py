import pytest
import torch

from training.evaluation.extractors import (
    Features,
    adaptor_extractor,
    backbone_extractor,
    extract_features,
    pixel_extractor,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_batches_are_invisible_and_uint8_equals_floats(images):
    extractor = pixel_extractor(8)
    whole = extract_features(extractor, images, batch_size=5)
    split = extract_features(extractor, images / 255, batch_size=2)
    torch.testing.assert_close(whole.summary, split.summary)
    torch.testing.assert_close(whole.features, split.features)


def test_pixel_features_are_the_pixels_of_their_patch(images):
    features = extract_features(pixel_extractor(8), images).features
    assert features.shape == (5, 3 * 8 * 8, 4, 4)
    patch = images[2, :, 8:16, 24:32].float() / 255
    torch.testing.assert_close(features[2, :, 1, 3].reshape(3, 8, 8), patch)


def test_a_missing_summary_stays_missing(images):
    features = extract_features(lambda pixels: Features(None, pixels), images, batch_size=2)
    assert features.summary is None
    torch.testing.assert_close(features.mean_features, images.float().mean((2, 3)) / 255)


def test_autocast_reaches_the_extractor_and_results_stay_float32(images):
    seen = []

    def extractor(pixels: torch.Tensor) -> Features:
        product = pixels.flatten(1) @ torch.ones(3 * 32 * 32, 4)
        seen.append(product.dtype)
        return Features(product, pixels)

    features = extract_features(extractor, images, dtype=torch.bfloat16)
    assert seen == [torch.bfloat16]
    assert features.summary.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 1, 8, 8), (3, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match="`images` must be a non-empty"):
        extract_features(pixel_extractor(8), torch.zeros(shape))


@pytest.mark.parametrize("part", ["summary", "features"])
def test_answers_that_are_not_finite_are_no_measurement(images, part):
    def extractor(pixels: torch.Tensor) -> Features:
        return Features(pixels.mean((2, 3)), pixels)._replace(**{part: pixels * torch.nan})

    with pytest.raises(ValueError, match="The answers of my model are not finite: nothing can be measured"):
        extract_features(extractor, images, description="my model")


@pytest.mark.parametrize("return_dict", [True, False])
def test_backbone_and_adaptor_of_a_model(images, tiny_model, return_dict):
    tiny_model.config.return_dict = return_dict
    backbone = extract_features(backbone_extractor(tiny_model), images)
    adaptor = extract_features(adaptor_extractor(tiny_model, "teacher_a"), images)
    output = tiny_model(images / 255, feature_format="NCHW", return_dict=True)
    torch.testing.assert_close(backbone.summary, output.summary)
    torch.testing.assert_close(backbone.features, output.features)
    torch.testing.assert_close(adaptor.summary, output.adaptors["teacher_a"].summary)
    torch.testing.assert_close(adaptor.features, output.adaptors["teacher_a"].features)
