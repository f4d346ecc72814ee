"""The bases of adapters are found; nothing else is taken for one. Opening pauses the garbage collector."""

import gc
import json

import pytest

from modeling_radio import RadioModel, peft_radio
from modeling_radio.loading_radio import find_adapter_base, garbage_collection_paused


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


@pytest.mark.parametrize("base", [None, True, ["x"], "/old/runs/base", "../moved", ".", "../other"])
def test_nothing_that_can_be_a_base(peft_folder, base):
    save_base(peft_folder.parent / "other", model_type="vit")
    describe(peft_folder, base_model_name_or_path=base)
    with pytest.raises(ValueError, match="`base_model_name_or_path`"):
        find_adapter_base(peft_folder)


def test_adapter_folder_without_peft(peft_folder, monkeypatch):
    monkeypatch.setattr(peft_radio, "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match="pip install peft"):
        find_adapter_base(peft_folder)
