"""The commands of the page on towers of language models run in order, on a tiny Nemotron."""

import shlex

import pytest
import torch
from documentation import blocks
from safetensors.torch import load_file
from tiny_folders import save_images
from tiny_nemotron import build_tower, save_nemotron

from modeling_radio import RadioModel, engines
from modeling_radio.presets_radio import Size
from modeling_radio_cli import main


@pytest.fixture
def tensors_of(tmp_path):
    return lambda name: {
        key: tensor for file in (tmp_path / name).glob("model*.safetensors") for key, tensor in load_file(file).items()
    }


@pytest.mark.tour
def test_a_tower_is_taken_out_tuned_and_put_back(tmp_path, tensors_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(engines.TOWER_NAMES, "vit_huge_patch16_224", Size(32, 2, 2))
    save_nemotron(tmp_path / "nemotron", build_tower())
    save_images(tmp_path / "pets")
    commands = next(block for block in blocks("bash") if block.page == "docs/how-to/vlm.md")
    for line in commands.text.splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    before, after = tensors_of("nemotron"), tensors_of("tuned-nemotron")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("vision_model.radio_model.model.blocks.") for name in changed)
    merged = RadioModel.from_pretrained("runs/tower/merged").radio_model.model.blocks[1].attn.qkv.weight
    assert torch.equal(after["vision_model.radio_model.model.blocks.1.attn.qkv.weight"], merged)
    [python] = [block for block in blocks("python") if block.page == "docs/how-to/vlm.md"]
    names = {}
    exec(compile(python.text, python.place, "exec"), names)
    assert names["tokens"].shape[2:] == (2, 2)
