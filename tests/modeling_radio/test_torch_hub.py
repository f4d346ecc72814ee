"""`torch.hub.load` opens folders by NVIDIA's call, and what it returns answers as NVIDIA's models do."""

import copy
import io
from pathlib import Path

import pytest
import torch
from tiny_folders import save_radio, save_words
from torch import nn

from modeling_radio import RadioForZeroShotImageClassification, RadioModel
from modeling_radio.torch_hub import TorchHubRadio


ROOT = Path(__file__).parents[2]
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_radio(tmp_path_factory.mktemp("hub") / "plain")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return save_words(tmp_path_factory.mktemp("hub") / "words")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def load(version: Path | str, **arguments) -> TorchHubRadio:
    return torch.hub.load(str(ROOT), "radio_model", source="local", version=str(version), **arguments)


def test_a_model_without_adaptors_gives_pairs(folder):
    model, expected = load(folder, progress=False), RadioModel.from_pretrained(folder)(IMAGES)
    assert not model.training
    summary, features = model(IMAGES)
    assert torch.equal(summary, expected.summary)
    assert torch.equal(features, expected.features)
    assert model(IMAGES, feature_fmt="NCHW").features.shape == (2, features.shape[2], 2, 3)
    assert len(model.adaptors) == 0
    assert not hasattr(model, "config")


def test_adaptors_that_were_asked_for_answer_until_they_are_removed(folder):
    model, expected = load(folder, adaptor_names=["words", "dense"]), RadioModel.from_pretrained(folder)(IMAGES)
    answers = model(IMAGES)
    assert list(answers) == ["backbone", *model.adaptors] == ["backbone", "words", "dense"]
    assert torch.equal(answers["words"].summary, expected.adaptors["words"].summary)
    assert list(load(folder, adaptor_names="dense").adaptors) == ["dense"]
    model.adaptors = None
    assert torch.equal(model(IMAGES).features, expected.features)


def test_windows_are_those_of_the_call(folder):
    model = load(folder, vitdet_window_size=2)
    images = torch.rand(1, 3, 96, 96)
    assert model.window_size == 2
    expected = RadioModel.from_pretrained(folder)(images, window_size=2).features
    assert torch.equal(model(images).features, expected)
    assert not torch.allclose(model(images, window_size="global").features, expected, atol=1e-4)


def test_texts_are_encoded_by_the_adaptor_of_their_tower(words):
    model = load(words, adaptor_names=["words"])
    adaptor, own = model.adaptors["words"], RadioForZeroShotImageClassification.from_pretrained(words)
    tokens = adaptor.tokenizer(["a cat", "a photo of a dog"])
    embeds = own.get_text_features(tokens, return_dict=True).pooler_output
    assert torch.equal(adaptor.encode_text(tokens), embeds)
    unit = adaptor.encode_text(tokens, normalize=True)
    torch.testing.assert_close(unit, nn.functional.normalize(embeds, dim=-1))
    images = own.get_image_features(IMAGES, return_dict=True).pooler_output
    assert torch.equal(model(IMAGES)["words"].summary, images)
    model.adaptors = None
    assert torch.equal(adaptor.encode_text(tokens), embeds)


def test_a_copy_stands_alone_and_weights_are_all_there(words):
    model = load(words, adaptor_names=["words"])
    again = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for parameter in model.parameters():
        parameter.zero_()
    assert again(IMAGES)["words"].summary.abs().max() > 0
    assert again.adaptors["words"].encode_text(torch.tensor([[4, 9, 3]])).abs().max() > 0
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(IMAGES)["words"].summary, again(IMAGES)["words"].summary)


def test_parts_that_are_set_are_used(folder):
    model = load(folder)
    model.input_conditioner = nn.Identity()
    expected = RadioModel.from_pretrained(folder)
    expected.make_preprocessor_external()
    assert torch.equal(model(IMAGES - 0.4).features, expected(IMAGES - 0.4).features)


def test_it_compiles_as_one_graph(folder):
    model = load(folder, adaptor_names=["words"])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for name, pair in compiled(IMAGES).items():
        torch.testing.assert_close(pair.features, model(IMAGES)[name].features)


def test_an_unknown_adaptor_is_named(folder):
    with pytest.raises(ValueError, match=r"`adaptor_names` .*'word'"):
        load(folder, adaptor_names=["word"])
