"""Files of weights and their indices, validated before any weight is read: an error names the damaged file."""

import json
import re
from pathlib import Path

import pytest
from reference_cases import write_hub_folder

from modeling_radio import RadioModel
from modeling_radio.conversion.from_nvidia import convert


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_hub_folder("c_radio_v4_slots_tiny", tmp_path / "hub")


DAMAGES = [
    lambda data: data[:100],
    lambda data: b"\xff" * 8 + data[8:],
    lambda data: b"",
    lambda data: data.replace(b'"F32"', b'"F 2"', 1),
    lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(damage, folder):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    for opened in (RadioModel.from_pretrained, convert):
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            opened(folder)


INDICES = [
    *("[]", "{", "[" * 100_000, "{}"),
    '{"weight_map": ["model.safetensors"]}',
    '{"weight_map": {"weight": 5}}',
    '{"weight_map": {"weight": ["a"]}}',
    '{"weight_map": {"weight": "config.json"}}',
    '{"weight_map": {"weight": "model.safetensors"}}',
]


@pytest.mark.parametrize("text", INDICES)
def test_damaged_indices_are_refused_by_name(text, folder):
    (folder / "model.safetensors.index.json").write_text(text)
    for opened in (RadioModel.from_pretrained, convert):
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json'"):
            opened(folder)


@pytest.mark.parametrize("place", ["../elsewhere/model.safetensors", "{}/elsewhere/model.safetensors", "a/../b"])
def test_an_index_reads_nothing_outside_of_its_folder(place, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "elsewhere" / "model.safetensors")
    index = {"weight_map": {"weight": place.format(tmp_path)}, "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for opened in (RadioModel.from_pretrained, convert):
        with pytest.raises(ValueError, match="`weight_map`"):
            opened(folder)
