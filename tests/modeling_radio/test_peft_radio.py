"""Adapter folders: which folder is one, and what does not fit."""

import json

import pytest

from modeling_radio import peft_radio
from modeling_radio.peft_radio import check_adapter_weights, find_adapter_base


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_adapter_folder_names_its_base(folder):
    assert find_adapter_base(folder) == find_adapter_base(str(folder)) == "some/base"


@pytest.mark.parametrize("missing", ["adapter_config.json", "config.json"])
def test_other_folders_name_none(folder, missing):
    (folder / missing).unlink()
    assert find_adapter_base(folder) is None


def test_neither_whole_models_nor_ids_name_a_base(folder):
    (folder / "model.safetensors").touch()
    for name in (folder, "org/name", None):
        assert find_adapter_base(name) is None


def test_adapter_folder_without_peft(folder, monkeypatch):
    monkeypatch.setattr(peft_radio, "is_peft_available", lambda: False)
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
