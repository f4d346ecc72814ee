"""NVIDIA's names mean what they mean there, on model and `radio_model` alike."""

import pytest
import torch
from torch import nn

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.checks_radio import Resolution


ADAPTORS = [{"name": "sam3", "hidden_size": 8, "feature_dim": 6, "summary_dim": 4}]


@pytest.fixture(scope="module", params=["model", "radio_model", "classifier"])
def named(request) -> nn.Module:
    """A model or network with NVIDIA's names; its window is not the default."""
    config = RadioConfig.from_preset("radio-test", vitdet_window_size=3, preferred_resolution=[64, 96], num_registers=5)
    if request.param == "classifier":
        return RadioForImageClassification(config).eval()
    model = RadioModel(config).eval()
    return model if request.param == "model" else model.radio_model


def test_names_of_sizes(named):
    config = named.config
    assert (named.patch_size, named.min_resolution_step) == (16, 16)
    assert named.max_resolution == config.max_img_size
    assert named.preferred_resolution == Resolution(64, 96)
    nearest = named.get_nearest_supported_resolution(height=70, width=90)
    assert (nearest.height, nearest.width) == (64, 96)
    assert named.window_size == 3
    assert (named.embed_dim, named.num_cls_tokens) == (config.hidden_size, config.num_cls_tokens)
    assert named.num_summary_tokens == config.num_cls_tokens + 5
    assert named.summary_dim == len(config.summary_idxs) * config.hidden_size


def test_names_of_parts():
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS)).eval()
    assert model.blocks is model.radio_model.blocks is model.radio_model.model.blocks
    assert model.model is model.radio_model.model
    assert list(model.adaptors) == list(model.radio_model.adaptors) == ["sam3"]
    assert model.input_conditioner is model.radio_model.input_conditioner
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.switch_to_deploy()
    model.radio_model.switch_to_deploy()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_adaptors_are_removed_from_the_configuration_too(tmp_path):
    second = {**ADAPTORS[0], "name": "dino_v3"}
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[*ADAPTORS, second])).eval()
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = model(images)
        model.adaptors = {"dino_v3": model.adaptors["dino_v3"]}
        kept = model(images)
        assert list(kept.adaptors) == list(model.adaptors) == ["dino_v3"]
        assert torch.equal(kept.adaptors["dino_v3"].summary, expected.adaptors["dino_v3"].summary)
        model.adaptors = None
        assert model(images).adaptors == {}
    model.save_pretrained(tmp_path)
    again, loaded = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not again.config.adaptors
    with pytest.raises(ValueError, match=r"`adaptors` .*'sam3'"):
        model.adaptors = ["sam3"]
