"""NVIDIA's names with a method behind them, on model and `radio_model` alike."""

import warnings

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel


ADAPTORS = [{"name": "sam3", "hidden_size": 8, "feature_dim": 6, "summary_dim": 4}]


@pytest.mark.parametrize("on_network", [False, True])
def test_pixels_normalized_by_the_caller(on_network, tmp_path):
    model = RadioModel(RadioConfig.from_preset("radio-test", return_dict=False)).eval()
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = model(images)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        conditioner = (model.radio_model if on_network else model).make_preprocessor_external()
        normalized = conditioner(images)
        mean, std = (torch.tensor(model.config.to_dict()[name]).view(3, 1, 1) for name in ("norm_mean", "norm_std"))
        torch.testing.assert_close(normalized, (images - mean) / std)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that pixels leave [0, 1] is as it must be now
            actual = model(normalized)
        assert not torch.allclose(model(images).summary, expected.summary, atol=1e-3)
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))
    assert model.make_preprocessor_external()(images) is images
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(RadioModel.from_pretrained(tmp_path).eval()(images).summary, expected.summary)


def test_texts_need_a_folder():
    adaptors = [{**ADAPTORS[0], "name": "words"}]
    model = RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors, text_adaptor="words"))
    with pytest.raises(LookupError, match="`tokenizer`"):
        model.adaptors["words"].tokenizer(["a cat"])
