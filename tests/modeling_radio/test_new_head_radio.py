"""A new head is one line of the report; everything that is not expected is reported in full."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_models import ADAPTORS, EVERY_MODEL, THREE_MODELS, tiny_config
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_radio import RadioForImageClassification, RadioImageProcessor, RadioModel


LOGGER = logging.get_logger("transformers.modeling_utils")
HEADS = [name for name in THREE_MODELS if name != "backbone with adaptors"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    config = tiny_config(adaptors=ADAPTORS)
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(tmp_path):
    """Return a folder with a classifier, and a function that changes its tensors."""
    RadioForImageClassification(tiny_config()).save_pretrained(tmp_path)

    def change(edit):
        tensors = load_file(tmp_path / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with CaptureLogger(LOGGER) as captured:
            RadioForImageClassification.from_pretrained(tmp_path)
        return captured.out

    return change


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_is_one_line(name, backbone):
    model_class, fields = EVERY_MODEL[name]
    with CaptureLogger(LOGGER) as captured:
        model, loaded = model_class.from_pretrained(backbone, output_loading_info=True, **fields)
    parts = [part for part, _ in model.named_children() if part != "radio_model"]
    count = len(loaded["missing_keys"])
    assert captured.out == f"{model_class.__name__}: {count} new weights to train: {', '.join(parts)}.\n"
    head = {key for key in model.state_dict() if not key.startswith("radio_model.")}
    assert loaded["missing_keys"] == head, "code that asks gets every key"


def test_a_full_folder_reports_nothing(classifier):
    assert classifier(lambda tensors: None) == ""


def test_a_part_of_a_head_that_is_missing_is_reported_in_full(classifier):
    report = classifier(lambda tensors: tensors.pop("classifier.1.bias"))
    assert re.search(r"classifier\.1\.bias\s+\| MISSING", report)
    assert "new weights to train" not in report


def test_what_else_differs_is_reported_beside_a_new_head(classifier):
    def damage(tensors):
        for key in [key for key in tensors if key.startswith("classifier.")]:
            del tensors[key]
        del tensors["radio_model.model.blocks.0.attn.qkv.weight"]
        tensors["radio_model.model.stranger"] = torch.ones(1)

    report = classifier(damage)
    assert "RadioForImageClassification: 4 new weights to train: classifier.\n" in report
    assert re.search(r"blocks\.0\.attn\.qkv\.weight\s+\| MISSING", report)
    assert re.search(r"radio_model\.model\.stranger\s+\| UNEXPECTED", report)
    assert not re.search(r"classifier.*MISSING", report)


def test_a_backbone_of_a_tuned_model_is_opened_without_a_report(tmp_path):
    RadioForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with CaptureLogger(LOGGER) as captured:
        _, loaded = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert captured.out == ""
    assert {key.partition(".")[0] for key in loaded["unexpected_keys"]} == {"classifier"}
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"radio_model.model.stranger": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with CaptureLogger(LOGGER) as captured:
        RadioModel.from_pretrained(tmp_path)
    assert re.search(r"radio_model\.model\.stranger\s+\| UNEXPECTED", captured.out)
    assert "classifier" not in captured.out
