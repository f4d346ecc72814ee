"""What `AutoProcessor` opens: images of one size, texts as the tower was trained, whatever the caller asks for."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folders import save_radio, save_words
from tiny_texts import build_dual_encoder, build_word_tokenizer
from transformers import AutoImageProcessor, AutoProcessor

from modeling_radio import (
    RadioConfig,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
    RadioProcessor,
)
from modeling_radio.conversion.text_tower import canonicalizing
from modeling_radio.processing_radio import with_one_size


WIDTH = 12


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((60, 90), (128, 64))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_radio(tmp_path_factory.mktemp("plain") / "folder")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_words(tmp_path_factory.mktemp("words") / "folder")


@pytest.fixture(scope="module", params=["siglip", "siglip2", "clip"])
def towers(request, tmp_path_factory):
    """A folder with the text tower of a teacher."""
    folder = tmp_path_factory.mktemp(request.param)
    adaptors = [{"name": request.param, "summary_dim": WIDTH, "hidden_size": 24}]
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors))
    torch.manual_seed(0)
    zero_shot = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder(request.param, WIDTH))
    zero_shot.save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config, size=64).save_pretrained(folder)
    tokenizer = build_word_tokenizer()
    (tokenizer if request.param == "clip" else canonicalizing(tokenizer, 16)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"shortest_edge": 64}, (64, 64)),
        ({"longest_edge": 100}, (96, 96)),
        ({"height": 64, "width": 96}, (64, 96)),
        ({"max_height": 64, "max_width": 96}, (64, 64)),
        ({"max_pixels": 128**2}, (128, 128)),
    ],
)
def test_all_images_become_one_size(size, expected):
    processor = RadioImageProcessor(size=size)
    one_size = with_one_size(processor)
    assert one_size(pictures(), return_tensors="pt")["pixel_values"].shape == (2, 3, *expected)
    assert processor.to_dict() == RadioImageProcessor(size=size).to_dict()


def test_a_folder_without_texts_has_images_alone(plain):
    processor = AutoProcessor.from_pretrained(plain, use_fast=True)
    assert type(processor) is RadioImageProcessor
    assert processor(images=pictures(), return_tensors="pt")["pixel_values"].shape == (2, 3, 64, 64)
    kept = AutoImageProcessor.from_pretrained(plain)
    assert kept(pictures()[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    assert AutoProcessor.from_pretrained(plain, size=(32, 48))(pictures())["pixel_values"][0].shape == (3, 32, 48)


def test_images_and_texts_in_one_call(words):
    processor = AutoProcessor.from_pretrained(words)
    assert type(processor) is RadioProcessor
    both = processor(images=pictures(), text=["a cat", "a photo of a dog"], return_tensors="pt")
    assert both["pixel_values"].shape == (2, 3, 64, 64)
    assert both["input_ids"].shape == (2, 6)
    assert set(both) == {"pixel_values", "input_ids"}
    torch.testing.assert_close(processor(images=pictures(), return_tensors="pt")["pixel_values"], both["pixel_values"])
    assert processor(text="a cat")["input_ids"] == [4, 9, 3]


def test_texts_are_padded_as_the_tower_was_trained(towers):
    processor, texts = AutoProcessor.from_pretrained(towers), ["a cat", "a photo of a dog " * 5]
    first = processor(text=texts[:1], return_tensors="pt")["input_ids"]
    assert first.shape == ((1, 3) if not processor.pad_to_max else (1, 16))
    model = RadioModel.from_pretrained(towers).eval()
    zero_shot = RadioForZeroShotImageClassification.from_pretrained(towers).eval()
    expected = zero_shot.embed_texts(processor.tokenizer, texts)
    of_sentence_transformers = {
        "text_kwargs": {"padding": True, "truncation": "longest_first"},
        "images_kwargs": {},
        "audio_kwargs": {"padding": True},
        "videos_kwargs": {},
        "common_kwargs": {"return_tensors": "pt"},
    }
    for options in ({"padding": True, "max_length": 99, "return_tensors": "pt"}, of_sentence_transformers):
        with torch.no_grad():
            found = model.get_text_features(**processor(text=texts, **options)).pooler_output
        torch.testing.assert_close(torch.nn.functional.normalize(found), expected)


def test_what_was_saved_opens_again(words, tmp_path):
    processor = RadioProcessor.from_pretrained(words)
    RadioForZeroShotImageClassification.from_pretrained(words).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is RadioProcessor
    assert (again.max_text_length, again.pad_to_max) == (processor.max_text_length, processor.pad_to_max)
    assert again.image_processor.size == processor.image_processor.size
    assert AutoImageProcessor.from_pretrained(tmp_path).size == processor.image_processor.size
    assert "image_processor" not in json.loads((tmp_path / "processor_config.json").read_text())


def test_refusals(words):
    processor = RadioProcessor.from_pretrained(words)
    with pytest.raises(ValueError, match="`images`"):
        processor()
    for given in ({"images": pictures()}, {"text": ["a cat"]}):
        with pytest.raises(TypeError, match=r"`do_paad`.*do_pad"):
            processor(**given, do_paad=True)


ELSEWHERE = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
for folder in ("words", "plain"):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    images = [Image.new("RGB", (90, 60), "red"), Image.new("RGB", (64, 128), "blue")]
    with torch.no_grad():
        found = {"images": model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output}
        if folder == "words":
            inputs = processor(text=["a cat", "a photo of a dog"], return_tensors="pt", padding=True)
            found["texts"] = model.get_text_features(**inputs).pooler_output
    model.save_pretrained(folder + "-again")
    processor.save_pretrained(folder + "-again")
    again = AutoProcessor.from_pretrained(folder + "-again", trust_remote_code=True)
    pixels = again(images=images, return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, found["images"])
    torch.save(found, folder + ".pt")
"""


def test_remote_code_alone(words, plain, tmp_path, run_elsewhere):
    (tmp_path / "words").symlink_to(words)
    (tmp_path / "plain").symlink_to(plain)
    run_elsewhere(ELSEWHERE, tmp_path)
    images = [Image.new("RGB", (90, 60), "red"), Image.new("RGB", (64, 128), "blue")]
    pixels = AutoProcessor.from_pretrained(plain)(images=images, return_tensors="pt")["pixel_values"]
    zero_shot = RadioForZeroShotImageClassification.from_pretrained(words).eval()
    tokenizer = RadioProcessor.from_pretrained(words).tokenizer
    found = torch.load(tmp_path / "words.pt", weights_only=True)
    with torch.no_grad():
        expected = zero_shot.get_image_features(pixels).pooler_output
        torch.testing.assert_close(found["images"], expected)
        expected = zero_shot.embed_texts(tokenizer, ["a cat", "a photo of a dog"])
        torch.testing.assert_close(torch.nn.functional.normalize(found["texts"]), expected)
        expected = RadioModel.from_pretrained(plain).eval()(pixels).summary
    torch.testing.assert_close(torch.load(tmp_path / "plain.pt", weights_only=True)["images"], expected)
