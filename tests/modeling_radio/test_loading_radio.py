"""A new head is one line of the report; everything that is not expected is reported in full."""

import gc
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_models import ADAPTORS, EVERY_MODEL, tiny_config
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_radio import RadioForImageClassification, RadioImageProcessor, RadioModel, loading_radio
from modeling_radio.loading_radio import (
    check_adapter_versions,
    check_adapter_weights,
    find_adapter_base,
    garbage_collection_paused,
    source_of_weights,
)


LOGGER = logging.get_logger("transformers.modeling_utils")
HEADS = [name for name in EVERY_MODEL if name not in {"backbone with adaptors", "maps"}]


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


def test_a_stranger_reads_one_line(backbone, elsewhere):
    code = """
from transformers import AutoModelForImageClassification
AutoModelForImageClassification.from_pretrained(".", trust_remote_code=True)
"""
    result = elsewhere.run(code, backbone)
    assert result.returncode == 0, result.stderr
    lines = [line for line in re.split(r"[\r\n]+", result.stdout + result.stderr) if "Loading weights" not in line]
    assert [line for line in lines if line] == [
        "[transformers] RadioForImageClassification: 4 new weights to train: classifier."
    ]


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


def test_an_error_and_a_pause_within_a_pause_leave_it_as_it_was() -> None:
    with pytest.raises(OSError, match="nowhere"):
        RadioModel.from_pretrained("./nowhere")
    assert gc.isenabled()
    with garbage_collection_paused():
        with garbage_collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.fixture
def peft_folder(tmp_path):
    peft_folder = tmp_path / "adapter"
    peft_folder.mkdir()
    (peft_folder / "config.json").write_text("{}")
    describe(peft_folder, base_model_name_or_path="some/base")
    return peft_folder


def describe(peft_folder, **fields):
    (peft_folder / "adapter_config.json").write_text(json.dumps(fields))


def save_base(peft_folder, **config):
    peft_folder.mkdir()
    (peft_folder / "config.json").write_text(json.dumps(config or {"model_type": "radio"}))
    return peft_folder


def test_adapter_folder_names_its_base(peft_folder):
    assert find_adapter_base(peft_folder) == find_adapter_base(str(peft_folder)) == "some/base"
    assert find_adapter_base("org/name") is None


@pytest.mark.parametrize(
    ("missing", "there"),
    [
        ("adapter_config.json", None),
        ("config.json", None),
        (None, "model.safetensors"),
        (None, "pytorch_model-00001-of-00002.bin"),
    ],
)
def test_other_folders_and_whole_models_name_none(peft_folder, missing, there):
    if missing is not None:
        (peft_folder / missing).unlink()
    if there is not None:
        (peft_folder / there).touch()
    assert find_adapter_base(peft_folder) is None


@pytest.mark.parametrize("is_absolute", [True, False])
def test_base_in_a_folder(peft_folder, is_absolute):
    base = save_base(peft_folder.parent / "base")
    describe(peft_folder, base_model_name_or_path=str(base) if is_absolute else "../base")
    assert find_adapter_base(peft_folder) == str(base if is_absolute else peft_folder / "../base")


def test_base_is_named_from_the_working_directory(peft_folder, monkeypatch):
    save_base(peft_folder.parent / "base")
    monkeypatch.chdir(peft_folder.parent)
    describe(peft_folder, base_model_name_or_path="base")
    assert find_adapter_base(peft_folder) == "base"


@pytest.mark.parametrize("base", [None, "/old/runs/base", "../moved", ".", "../other"])
def test_nothing_that_can_be_a_base(peft_folder, base):
    save_base(peft_folder.parent / "other", model_type="vit")
    describe(peft_folder, base_model_name_or_path=base)
    with pytest.raises(ValueError, match="`base_model_name_or_path`"):
        find_adapter_base(peft_folder)


@pytest.mark.parametrize(("version", "is_peft_recent"), [("5.17.0", True), ("5.18.0", False)])
def test_versions_that_leave_out_heads(peft_folder, monkeypatch, version, is_peft_recent):
    monkeypatch.setattr(loading_radio.transformers, "__version__", version)
    monkeypatch.setattr(loading_radio, "is_peft_greater_or_equal", lambda _: is_peft_recent)
    check_adapter_versions(peft_folder)
    check_adapter_versions(None)
    describe(peft_folder, modules_to_save=["classifier"])
    with pytest.raises(ValueError, match=rf"transformers {version}"):
        check_adapter_versions(peft_folder)
    monkeypatch.setattr(loading_radio.transformers, "__version__", "5.18.0.dev0")
    monkeypatch.setattr(loading_radio, "is_peft_greater_or_equal", lambda _: True)
    check_adapter_versions(peft_folder)


def test_adapter_folder_without_peft(peft_folder, monkeypatch):
    monkeypatch.setattr(loading_radio, "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match="pip install peft"):
        find_adapter_base(peft_folder)


def test_differences_are_one_message():
    check_adapter_weights("here", [], [], [])
    message = r"'here' .*`b` .*\(1, 2\) .*\(1, 3\) .*`c`.*`a`.*A remark\."
    with pytest.raises(ValueError, match=message):
        check_adapter_weights("here", ["b", "a"], ["d", "c"], [("b", [1, 2], [1, 3])], "A remark.")
    with pytest.raises(ValueError, match="`a`"):
        check_adapter_weights("here", ["a"], [], [])


def test_weights_are_those_of_the_base(peft_folder, monkeypatch):
    assert (
        source_of_weights(peft_folder, {}) == peft_folder
    )  # transformers takes a folder with a configuration for a whole model
    (peft_folder / "config.json").unlink()
    assert source_of_weights(peft_folder, {}) == "some/base"
    asked = {}

    def find(name, **options):
        asked[name] = options
        return str(peft_folder / "adapter_config.json") if name == "org/adapter" else None

    monkeypatch.setattr(loading_radio, "find_adapter_config_file", find)
    assert source_of_weights("org/adapter", {"revision": "v1", "token": None, "num_labels": 3}) == "some/base"
    assert source_of_weights("org/whole", {"subfolder": "a"}) == "org/whole"
    assert asked == {"org/adapter": {"revision": "v1"}, "org/whole": {"subfolder": "a"}}
    given = {"adapter_kwargs": {"_adapter_model_path": "org/other"}}
    assert source_of_weights("org/adapter", given) == "org/adapter"
