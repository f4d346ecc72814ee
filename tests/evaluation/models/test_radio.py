import torch
from refusals import refused

from modeling_radio import RadioImageProcessor, RadioModel
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.metrics.feature_model import FeatureModel, TextModel


def test_a_folder_is_opened_with_its_own_processor(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    processor = RadioImageProcessor.from_model_config(tiny_model.config, size={"height": 24, "width": 40})
    processor.save_pretrained(tmp_path)
    model = RadioFeatures.open(tmp_path)
    assert isinstance(model, FeatureModel)
    assert not isinstance(model, TextModel)
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    pixels = model.preprocess(image)
    assert pixels.shape == (3, 24, 40)
    assert torch.equal(pixels, processor(image, return_tensors="pt").pixel_values[0])
    assert (model.size_px, model.adaptor_names) == (24, ("teacher_a", "teacher_b"))
    encoding = model.encode(pixels[None], ["teacher_b"])
    expected = tiny_model(pixels[None], feature_format="NCHW", adaptor_names=["teacher_b"])
    assert torch.equal(encoding.summary, expected.summary)
    assert encoding.features.shape == (1, 16, 3, 5)
    assert torch.equal(encoding.adaptors["teacher_b"].features, expected.adaptors["teacher_b"].features)
    assert set(encoding.adaptors) == {"teacher_b"}


def test_the_shorter_side_can_be_chosen(tiny_model):
    model, image = RadioFeatures(tiny_model, size_px=32), torch.zeros(3, 40, 60, dtype=torch.uint8)
    assert model.preprocess(image).shape == (3, 32, 48)
    assert model.preprocess(image, 16).shape == (3, 16, 24)
    refused("size", lambda: RadioFeatures(tiny_model, size_px=30))


def test_the_fingerprint_knows_weights_processor_and_precision(tiny_model):
    same = RadioFeatures(tiny_model).fingerprint()
    others = [
        RadioFeatures(RadioModel(tiny_model.config)),
        RadioFeatures(tiny_model, dtype=torch.bfloat16),
        RadioFeatures(tiny_model, size_px=32),
    ]
    found = {each.fingerprint() for each in others}
    assert RadioFeatures(tiny_model).fingerprint() == same
    tiny_model.radio_model.model.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    assert len({same, *found, RadioFeatures(tiny_model).fingerprint()}) == 5


def test_one_model_at_another_size(tiny_model):
    model = RadioFeatures(tiny_model, size_px=32)
    other = model.with_size(64)
    assert (model.size_px, other.size_px, other.model is model.model) == (32, 64, True)
    assert model.fingerprint() != other.fingerprint()
    refused("size", lambda: model.with_size(33))
