"""Adapter folders: which folder is one, and what does not fit."""

import json
import re

import pytest

from modeling_radio import loading_radio
from modeling_radio.loading_radio import (
    check_adapter_versions,
    check_adapter_weights,
    find_adapter_base,
    source_of_weights,
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    describe(folder, base_model_name_or_path="some/base")
    return folder


def describe(folder, **fields):
    (folder / "adapter_config.json").write_text(json.dumps(fields))


def save_base(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "radio"}))
    return folder


def test_adapter_folder_names_its_base(folder):
    assert find_adapter_base(folder) == find_adapter_base(str(folder)) == "some/base"


@pytest.mark.parametrize("missing", ["adapter_config.json", "config.json"])
def test_other_folders_name_none(folder, missing):
    (folder / missing).unlink()
    assert find_adapter_base(folder) is None


@pytest.mark.parametrize(
    "weights",
    ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"],
)
def test_whole_models_name_no_base(folder, weights):
    (folder / weights).touch()
    assert find_adapter_base(folder) is None


def test_ids_name_no_base():
    assert find_adapter_base("org/name") is None


@pytest.mark.parametrize("is_absolute", [True, False])
def test_base_in_a_folder(folder, is_absolute):
    base = save_base(folder.parent / "base")
    describe(folder, base_model_name_or_path=str(base) if is_absolute else "../base")
    assert find_adapter_base(folder) == str(base if is_absolute else folder / "../base")


def test_base_is_named_from_the_working_directory(folder, monkeypatch):
    save_base(folder.parent / "base")
    monkeypatch.chdir(folder.parent)
    describe(folder, base_model_name_or_path="base")
    assert find_adapter_base(folder) == "base"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_model_name_or_path": None}, "got None, which names no base"),
        ({}, "got None, which names no base"),
        ({"base_model_name_or_path": "/old/runs/base"}, "got '/old/runs/base', which is no folder on this machine"),
        ({"base_model_name_or_path": "../moved"}, r"got '\.\./moved', which is no folder on this machine"),
        ({"base_model_name_or_path": "."}, r"got '\.', which is no folder of a RADIO model"),
        ({"base_model_name_or_path": "../other"}, r"got '\.\./other', which is no folder of a RADIO model"),
    ],
    ids=["null", "no field", "absolute", "relative", "adapter", "other model"],
)
def test_nothing_that_can_be_a_base(folder, fields, message):
    save_base(folder.parent / "other", model_type="vit")
    describe(folder, **fields)
    path = re.escape(str(folder / "adapter_config.json"))
    with pytest.raises(
        ValueError, match=rf"^`base_model_name_or_path` in '{path}' must be the folder or Hub id .*, {message}"
    ):
        find_adapter_base(folder)


@pytest.mark.parametrize(("version", "is_peft_recent"), [("5.17.0", True), ("5.18.0", False)])
def test_versions_that_leave_out_heads(folder, monkeypatch, version, is_peft_recent):
    monkeypatch.setattr(loading_radio.transformers, "__version__", version)
    monkeypatch.setattr(loading_radio, "is_peft_greater_or_equal", lambda _: is_peft_recent)
    check_adapter_versions(folder)
    check_adapter_versions(None)
    describe(folder, modules_to_save=["classifier"])
    with pytest.raises(ValueError, match=rf"has a head, which takes .*; installed are transformers {version} and peft"):
        check_adapter_versions(folder)
    monkeypatch.setattr(loading_radio.transformers, "__version__", "5.18.0.dev0")
    monkeypatch.setattr(loading_radio, "is_peft_greater_or_equal", lambda _: True)
    check_adapter_versions(folder)


def test_adapter_folder_without_peft(folder, monkeypatch):
    monkeypatch.setattr(loading_radio, "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match=r"is an adapter folder, which peft opens: `pip install peft`\."):
        find_adapter_base(folder)


def test_differences_are_one_message():
    check_adapter_weights("here", [], [], [])
    message = (
        r"^The adapter in 'here' is for another model: `b` has the shape \(1, 2\) in the adapter and \(1, 3\) in the "
        r"model, the model has no `c`, the adapter has no `a`\. A remark\. Open the base that it was trained on, with "
        r"the head that the adapter's config\.json describes\.$"
    )
    with pytest.raises(ValueError, match=message):
        check_adapter_weights("here", ["b", "a"], ["d", "c"], [("b", [1, 2], [1, 3])], "A remark.")
    with pytest.raises(ValueError, match=r"has no `a`\. Open"):
        check_adapter_weights("here", ["a"], [], [])


def test_weights_are_those_of_the_base(folder, monkeypatch):
    assert source_of_weights(folder, {}) == folder  # transformers takes a folder with a configuration for a whole model
    (folder / "config.json").unlink()
    assert source_of_weights(folder, {}) == "some/base"
    asked = {}

    def find(name, **options):
        asked[name] = options
        return str(folder / "adapter_config.json") if name == "org/adapter" else None

    monkeypatch.setattr(loading_radio, "find_adapter_config_file", find)
    assert source_of_weights("org/adapter", {"revision": "v1", "token": None, "num_labels": 3}) == "some/base"
    assert source_of_weights("org/whole", {"subfolder": "a"}) == "org/whole"
    assert asked == {"org/adapter": {"revision": "v1"}, "org/whole": {"subfolder": "a"}}
    given = {"adapter_kwargs": {"_adapter_model_path": "org/other"}}
    assert source_of_weights("org/adapter", given) == "org/adapter"
