"""Other names of an adaptor's teacher."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel


HEAD = {"summary_dim": 8, "feature_dim": 8, "hidden_size": 16}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    adaptors = [{"name": name, **HEAD} for name in ("siglip2", "dino_v3_7b")]
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors)).eval()


def test_a_call_takes_another_known_name_and_outputs_answer_to_both(model):
    images = torch.rand(1, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"'dino_v3_7b'.*'dino_v3'"):
        output = model(images, adaptor_names=["dino_v3", "dino_v3_7b"])
    assert list(output.adaptors) == ["dino_v3_7b"]
    assert output.adaptors["dino_v3"].summary is output.adaptors["dino_v3_7b"].summary
    with pytest.warns(UserWarning, match="dino_v3"):
        pairs = model(images, adaptor_names=["dino_v3"], return_dict=False)
    assert list(pairs) == ["backbone", "dino_v3_7b"]
    assert torch.equal(pairs["dino_v3"].summary, output["dino_v3"].summary)
    assert model.adaptors["dino_v3"] is model.adaptors["dino_v3_7b"]
    with pytest.raises(KeyError, match="dino"):
        pairs["dino"]


def test_opening_takes_it_but_a_saved_configuration_does_not(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="dino_v3"):
        opened = RadioModel.from_pretrained(tmp_path, adaptor_names=["dino_v3"])
    assert opened.config.adaptor_names == ["dino_v3_7b"]
    with pytest.raises(ValueError, match=r"`adaptor_names`.*'dino_v3_7b'"):
        RadioConfig.from_preset("radio-test", adaptors=model.config.adaptors, adaptor_names=["dino_v3"])


@pytest.mark.parametrize("name", ["siglip2-g", "siglip", "dino", "dino_v2"])
def test_nothing_is_matched_by_a_part_of_its_name_nor_to_another_teacher(model, name):
    with pytest.raises(ValueError, match=r"`adaptor_names`.*'siglip2'"):
        model(torch.rand(1, 3, 64, 64), adaptor_names=[name])
