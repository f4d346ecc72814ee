"""RADIO folders behind the protocol: their own processor, their adaptors, and a fingerprint that tells them apart."""

import pytest
import torch

from modeling_radio import RadioImageProcessor, RadioModel
from training.evaluation.models.base import FeatureModel, TextModel
from training.evaluation.models.radio import RadioFeatures, open_radio


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    RadioImageProcessor.from_model_config(tiny_model.config, size={"height": 24, "width": 40}).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_a_folder_is_opened_with_its_own_processor(folder, tiny_model):
    model = open_radio(folder)
    assert isinstance(model, FeatureModel)
    assert not isinstance(model, TextModel)
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    pixels = model.preprocess(image)
    assert pixels.shape == (3, 24, 40)
    assert torch.equal(pixels, RadioImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values[0])
    assert model.size_px == 24
    encoding = model.encode(pixels[None], ["teacher_b"])
    expected = tiny_model(pixels[None], feature_format="NCHW", adaptor_names=["teacher_b"])
    assert torch.equal(encoding.summary, expected.summary)
    assert encoding.features.shape == (1, 16, 3, 5)
    assert torch.equal(encoding.adaptors["teacher_b"].features, expected.adaptors["teacher_b"].features)
    assert set(encoding.adaptors) == {"teacher_b"}
    assert model.adaptor_names == ("teacher_a", "teacher_b")


@pytest.mark.parametrize(("size_px", "shape"), [(None, (32, 48)), (16, (16, 24))])
def test_the_shorter_side_can_be_chosen(tiny_model, size_px, shape):
    model = RadioFeatures(tiny_model, size_px=32)
    assert model.preprocess(torch.zeros(3, 40, 60, dtype=torch.uint8), size_px).shape == (3, *shape)


def test_a_size_that_the_model_does_not_take(tiny_model):
    with pytest.raises(ValueError, match=r"`size` must have sides that are multiples of 8 .* got 30 x 30"):
        RadioFeatures(tiny_model, size_px=30)


def test_the_fingerprint_knows_weights_processor_and_precision(tiny_model):
    same = RadioFeatures(tiny_model).fingerprint()
    assert RadioFeatures(RadioModel(tiny_model.config)).fingerprint() != same
    assert RadioFeatures(tiny_model, dtype=torch.bfloat16).fingerprint() != same
    assert RadioFeatures(tiny_model, size_px=32).fingerprint() != same
    tiny_model.radio_model.model.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    assert RadioFeatures(tiny_model).fingerprint() != same
