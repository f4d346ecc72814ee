"""The model in the package: found before any Hub, complete, finite in every type, and what it says of a photograph."""

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModel, AutoModelForImageClassification

from modeling_radio import RadioConfig, RadioForImageClassification, RadioImageProcessor, RadioModel, RadioProcessor
from modeling_radio.api import PHOTOGRAPH, builtin
from modeling_radio.core.hub import find_folder
from modeling_radio.core.ids import ModelFolder, ModelId
from modeling_radio.core.opening import open_model
from modeling_radio.core.settings import SettingsError
from modeling_radio.tuning.settings import FinetuneSettings


NAME = "builtin:lite"
LARGEST = 12e6
"""Bytes of all files, which everybody downloads with the package."""


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    """Every request for files fails at once."""

    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download.http_backoff", refuse, raising=False)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    monkeypatch.setattr("modeling_radio.core.hub.snapshot_download", refuse)


@pytest.fixture(scope="module")
def model():
    return RadioForImageClassification.from_pretrained(NAME).eval()


@pytest.fixture(scope="module")
def pixels():
    return RadioImageProcessor.from_pretrained(NAME)(PHOTOGRAPH, return_tensors="pt")["pixel_values"]


def test_every_way_to_name_it_leads_to_its_folder():
    folder = builtin("lite")
    assert {str(find_folder(NAME)), str(TypeAdapter(ModelFolder).validate_python(NAME))} == {folder}
    assert TypeAdapter(ModelId).validate_python(NAME) == folder
    assert RadioConfig.from_pretrained(NAME).name_or_path == RadioConfig.from_pretrained(folder).name_or_path
    assert RadioProcessor.from_pretrained(NAME).size.height == 128
    assert type(AutoModel.from_pretrained(folder)) is RadioModel
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is RadioForImageClassification


@pytest.mark.parametrize(
    "opening",
    [RadioModel.from_pretrained, RadioConfig.from_pretrained, RadioImageProcessor.from_pretrained, find_folder],
)
def test_another_name_is_refused_with_those_that_there_are(opening):
    with pytest.raises(ValueError, match=r"`builtin`.*\['lite'\].*'light'"):
        opening("builtin:light")


def test_a_setting_says_which_names_there_are():
    with pytest.raises(SettingsError, match=r"`checkpoint`.*\['lite'\].*'light'"):
        FinetuneSettings(checkpoint="builtin:light", data="pets", output="run")


def test_it_is_small_complete_and_without_code():
    folder = find_folder(NAME)
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".safetensors"}
    assert open_model(folder, as_backbone=True).others == ("classifier",)


@torch.no_grad()
def test_it_names_the_photograph_and_is_finite_in_every_type(model, pixels):
    logits, features = model(pixels).logits, model.base_model(pixels).features
    assert model.dtype == torch.float32
    assert model.config.id2label[int(logits.argmax())] == "otter"
    for dtype in (torch.bfloat16, torch.float16):
        found = RadioForImageClassification.from_pretrained(NAME, dtype=dtype).eval()
        assert torch.cosine_similarity(found(pixels.to(dtype)).logits.float(), logits).item() > 0.99  # NaN is not
        assert (
            torch.cosine_similarity(found.base_model(pixels.to(dtype)).features.float(), features, dim=-1).mean() > 0.99
        )


def test_a_saved_copy_has_the_code(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_radio.py").is_file()
    assert "AutoModelForImageClassification" in RadioConfig.from_pretrained(tmp_path).auto_map
