"""Folded folders give the outputs of their originals, in transformers' own RADIO too."""

import json

import pytest
import torch
from safetensors.torch import save_file
from task_models import ADAPTORS, images, tiny_config
from tiny_folders import save_with_processor, save_words
from transformers.models.radio import RadioModel as NativeModel

from modeling_radio import RadioForImageClassification, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.conversion.to_folded import main
from modeling_radio.modeling_radio import BLOCKS
from modeling_radio.nvidia.source import load_tensors
from modeling_radio.nvidia.stored_tensors import stored_tensors


@torch.no_grad()
def save_scaled(kind, folder, **fields):
    model = kind(tiny_config(use_layer_scale=True, adaptors=ADAPTORS, **fields)).eval()
    for block in model.radio_model.model.blocks:
        block.ls1.grandma.uniform_(-1, 1)
        block.ls2.grandma.uniform_(-1, 1)
    save_with_processor(model, folder)
    return model


def assert_close(left, right):
    assert (left - right).abs().max() <= 1e-6 * right.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"use_swiglu_ffn": True, "qkv_bias": False}])
def test_outputs_and_adaptors_stay_and_transformers_own_radio_agrees(fields, tmp_path, capsys):
    model = save_scaled(RadioModel, tmp_path / "in", **fields)
    model.save_pretrained(tmp_path / "in", max_shard_size="60KB")
    (tmp_path / "in" / "model.safetensors").unlink()
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "vLLM" in capsys.readouterr().out
    batch = images()
    expected, folded = model(batch), RadioModel.from_pretrained(tmp_path / "out").eval()
    output = folded(batch)
    for left, right in (
        (output.features, expected.features),
        (output.summary, expected.summary),
        (output.adaptors["siglip2-g"].features, expected.adaptors["siglip2-g"].features),
    ):
        assert_close(left, right)
    if not fields:
        assert_close(NativeModel.from_pretrained(tmp_path / "out").eval()(batch).features, expected.features)
    is_native = "native `RadioModel` with the same backbone outputs" in (tmp_path / "out/README.md").read_text()
    assert is_native == (not fields)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    stored = stored_tensors(tmp_path / "out")
    assert index["weight_map"].keys() == stored.keys() == folded.state_dict().keys()
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(tensor.num_bytes for tensor in stored.values())


@torch.no_grad()
def test_a_head_stays(tmp_path):
    model = save_scaled(RadioForImageClassification, tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    batch = images()
    assert_close(
        RadioForImageClassification.from_pretrained(tmp_path / "out").eval()(batch).logits, model(batch).logits
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_layer_scale": False}, "`use_layer_scale`"),
        ({"downscale_levels": [2]}, "`downscale_levels`"),
        ({"num_hidden_layers": 3}, "missing"),
    ],
)
def test_other_folders_are_refused_in_one_line(fields, named, tmp_path, capsys):
    model = RadioModel(tiny_config(**{"use_layer_scale": True, **fields}))
    model.save_pretrained(tmp_path / "in")
    if named == "missing":
        model.config.num_hidden_layers = 4
        model.config.save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert named in error.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_weights_that_are_there_twice_or_not_at_all_are_refused(tmp_path, capsys):
    save_scaled(RadioModel, tmp_path / "in").save_pretrained(tmp_path / "in", max_shard_size="60KB")
    for named in ("model.safetensors.index.json", "lacks"):
        assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
        assert named in capsys.readouterr().err.splitlines()[-1]
        for path in tmp_path.glob("in/model*.safetensors"):
            path.unlink()
    assert not (tmp_path / "out").exists()


def test_texts_stay(tmp_path):
    save_words(tmp_path / "in")
    config = json.loads((tmp_path / "in/config.json").read_text())
    state = load_tensors(tmp_path / "in/model.safetensors")
    for block in range(config["num_hidden_layers"]):
        for scale in ("ls1", "ls2"):
            state[f"{BLOCKS}.{block}.{scale}.grandma"] = torch.rand(config["hidden_size"])
    save_file(state, tmp_path / "in/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "in/config.json").write_text(json.dumps({**config, "use_layer_scale": True}))
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    models = [RadioForZeroShotImageClassification.from_pretrained(tmp_path / name).eval() for name in ("in", "out")]
    batch = images(size=(64, 64))
    with torch.no_grad():
        scaled, folded = (model.get_image_features(batch).pooler_output for model in models)
    assert_close(folded, scaled)
    kept = {path.name for path in (tmp_path / "in").iterdir()}
    assert kept <= {path.name for path in (tmp_path / "out").iterdir()}
