"""A folder whose numbers would be made up is refused before anything is measured."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.checkpoints import MODEL_FOLDER, with_windowed_blocks
from modeling_radio.core.files import check_output
from modeling_radio.core.opening import open_model


WEIGHT = "radio_model.model.blocks.0.mlp.fc1.weight"
ADAPTOR = {"name": "teacher_a", "summary_dim": 6, "feature_dim": 10, "hidden_size": 16}


def build(depth, **fields):
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=depth, hidden_size=16, **fields)).eval()


@pytest.fixture
def folder(tmp_path):
    build(1, adaptors=[ADAPTOR]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_opens_without_the_heads_of_tasks(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "classifier.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    opened = open_model(folder, dtype=None, as_backbone=True)
    assert opened.others == ("classifier",)
    assert not opened.model.training
    assert torch.equal(opened.model.state_dict()[WEIGHT], weights[WEIGHT])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all, own: {name: all[name] for name in all if name != WEIGHT}, f"1 missing: {WEIGHT}"),
        (lambda all, own: {name: all[name] for name in all if "adaptors" not in name}, r"missing: .*\.teacher_a"),
        (lambda all, own: {**all, WEIGHT: own[:3]}, rf"shape: {WEIGHT} \(3, 16\)"),
        (lambda all, own: {**all, "radio_model.extra": torch.zeros(3)}, r"1 unknown: radio_model\.extra"),
        (lambda all, own: {**all, WEIGHT: own * torch.nan}, f"finite.*: {WEIGHT}"),
        (lambda all, own: {**all, WEIGHT: own + torch.inf}, f"finite.*: {WEIGHT}"),
        (lambda all, own: {**all, WEIGHT: own.cfloat()}, f"{WEIGHT} of C"),
        (lambda all, own: {**all, WEIGHT: own.int()}, f"{WEIGHT} of I32"),
    ],
)
def test_weights_that_are_not_the_models(folder, change, message):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(change(weights, weights[WEIGHT]), path, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        open_model(folder, dtype=None, as_backbone=True)


@pytest.mark.parametrize("size", [0, 6, 3000, -1])
def test_damaged_weights(folder, size):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size + size if size < 0 else size)
    with pytest.raises(ValueError, match="model"):
        open_model(folder, dtype=None, as_backbone=True)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "", r"config\.json"),
        ("config.json", "[]", r"config\.json"),
        ("config.json", "{}", "`checkpoint` .*None"),
        ("config.json", '{"model_type": "vit"}', "`checkpoint` .*'vit'"),
        ("config.json", None, "`checkpoint` .*config.json"),
        ("adapter_config.json", "{}", "`checkpoint` .*adapter"),
    ],
)
def test_folders_of_something_else(folder, file, text, message):
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_model(folder, dtype=None, as_backbone=True)


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


def test_only_model_folders_may_be_replaced(folder, tmp_path, monkeypatch):
    def check(path=folder, overwrite=True):
        check_output(path, overwrite=overwrite, kind=MODEL_FOLDER)

    check()
    check(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty")
    (folder / "README.md").touch()
    for path, overwrite, message in ((folder, False, "exists already"), (folder / "README.md", True, "a folder")):
        with pytest.raises(ValueError, match=f"`output` .*{message}"):
            check(path, overwrite)
    with monkeypatch.context() as inside:
        inside.chdir(folder)
        for path in (".", "..", str(folder)):
            with pytest.raises(ValueError, match=r"`output` .*working directory"):
                check(folder / path)
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt"):
        check()
    (folder / "notes.txt").unlink()
    for config in ("{", "[]", '{"model_type": "bert"}', "[" * 100_000):
        (folder / "config.json").write_text(config)
        with pytest.raises(ValueError, match="RADIO model folders only"):
            check()
