"""A folder whose numbers would be made up is refused before anything is measured."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import MODEL_FOLDER, open_checkpoint, with_windowed_blocks
from core.files import check_output
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor


WEIGHT = "radio_model.model.blocks.0.mlp.fc1.weight"


@pytest.fixture
def tiny_model():
    adaptor = {"name": "teacher_a", "summary_dim": 6, "feature_dim": 10, "hidden_size": 16}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, hidden_size=16, adaptors=[adaptor]))


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_opens(folder, tiny_model):
    model = open_checkpoint(folder).model
    assert not model.training
    assert torch.equal(model.state_dict()[WEIGHT], tiny_model.state_dict()[WEIGHT])


def test_heads_of_tasks_are_left_out(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "classifier.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    assert open_checkpoint(folder).other_keys == ["classifier.weight"]


def without_adaptors(weights):
    return {name: tensor for name, tensor in weights.items() if "adaptors" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: tensor for name, tensor in weights.items() if name != WEIGHT}, f"1 missing: {WEIGHT}"),
        (without_adaptors, r"[0-9]+ missing: radio_model\.adaptors\.teacher_a"),
        (lambda weights: {**weights, WEIGHT: weights[WEIGHT][:3]}, rf"1 of another shape: {WEIGHT} \(3, 16\) instead"),
        (lambda weights: {**weights, "radio_model.extra": torch.zeros(3)}, r"1 unknown: radio_model\.extra"),
        (
            lambda weights: {**weights, WEIGHT: weights[WEIGHT] * torch.nan},
            f"must be finite, but 1 hold .*: {WEIGHT}",
        ),
        (
            lambda weights: {**weights, WEIGHT: weights[WEIGHT] + torch.inf},
            f"must be finite, but 1 hold .*: {WEIGHT}",
        ),
        (
            lambda weights: {**weights, WEIGHT: weights[WEIGHT].cfloat()},
            f"of at least 16 bits, but 1 are not: {WEIGHT} of C",
        ),
        (
            lambda weights: {**weights, WEIGHT: weights[WEIGHT].int()},
            f"but 1 are not: {WEIGHT} of I32",
        ),
    ],
)
def test_weights_that_are_not_the_models(folder, change, message):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 6, 3000, -1])
def test_damaged_weights(folder, size):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size + size if size < 0 else size)
    with pytest.raises(ValueError, match="model"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json' is no valid JSON"),
        ("[]", r"config\.json' must hold a JSON object, got \[\]"),
        ("{}", "must be a RADIO model, got '.*model' with the `model_type` None"),
        ('{"model_type": "vit"}', "must be a RADIO model, got '.*model' with the `model_type` 'vit'"),
    ],
)
def test_configurations_of_something_else(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(folder)


def test_what_is_no_whole_model(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`checkpoint` must be a folder with a config\.json, got '.*missing'"):
        open_checkpoint(tmp_path / "missing")
    (folder / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="`checkpoint` must be a whole model, got the adapter"):
        open_checkpoint(folder)


def build(depth, **fields):
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=depth, hidden_size=16, **fields)).eval()


@pytest.mark.parametrize(("depth", "global_blocks"), [(2, [1]), (4, [3]), (6, [2, 5])])
def test_a_shallow_network_gets_blocks_with_windows_and_the_same_weights(depth, global_blocks):
    model = build(depth, vitdet_num_global=depth)
    changed = with_windowed_blocks(model)
    assert changed.config.global_blocks == global_blocks
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = model(images).features
        assert torch.equal(changed(images).features, whole)
        assert not torch.allclose(changed(images, window_size=2).features, whole)
    assert with_windowed_blocks(changed) is changed


@pytest.mark.parametrize(("depth", "fields"), [(1, {}), (4, {"downscale_levels": [2], "decoder_depth": 1})])
def test_networks_without_windows_stay_themselves(depth, fields):
    model = build(depth, **fields)
    assert with_windowed_blocks(model) is model


# What `--overwrite` may replace


@pytest.fixture
def model_folder(tmp_path):
    """What stands for a converted folder: its small files."""
    config = RadioConfig.from_preset("radio-test")
    config.save_pretrained(tmp_path / "out")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "out")
    for name in ("model.safetensors", "README.md", "modeling_radio.py"):
        (tmp_path / "out" / name).touch()
    return tmp_path / "out"


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "bert"}', "[" * 100_000])
def test_another_models_folder_is_kept(config, model_folder):
    (model_folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="replaces RADIO model folders only"):
        check_output(model_folder, overwrite=True, kind=MODEL_FOLDER)


def test_files_of_others_in_a_model_folder_are_kept(model_folder):
    (model_folder / "notes.txt").touch()
    (model_folder / "runs").mkdir()
    with pytest.raises(ValueError, match=r"replaces RADIO model folders only.*also holds notes\.txt, runs\."):
        check_output(model_folder, overwrite=True, kind=MODEL_FOLDER)


def test_a_model_folder_and_an_empty_one_may_be_replaced(model_folder, tmp_path):
    check_output(model_folder, overwrite=True, kind=MODEL_FOLDER)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=True, kind=MODEL_FOLDER)
    check_output(tmp_path / "new", overwrite=False, kind=MODEL_FOLDER)
    with pytest.raises(ValueError, match="exists already"):
        check_output(model_folder, overwrite=False, kind=MODEL_FOLDER)


def test_the_working_directory_and_files_are_kept(model_folder, monkeypatch):
    with pytest.raises(ValueError, match="`output` must be a folder, got the file"):
        check_output(model_folder / "README.md", overwrite=True, kind=MODEL_FOLDER)
    monkeypatch.chdir(model_folder)
    for path in (".", "..", str(model_folder)):
        with pytest.raises(ValueError, match="must not be or hold the working directory"):
            check_output(model_folder / path, overwrite=True, kind=MODEL_FOLDER)
