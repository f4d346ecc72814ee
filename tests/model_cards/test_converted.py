import re
import shutil

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from model_cards.converted import write_converted_card
from modeling_radio import RadioConfig


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "radio-tiny")


@pytest.mark.parametrize(
    ("version", "license_name"),
    [("c-radio_v4-h", "nvidia-open-model-license"), ("radio_v2.5-h", "nvidia-source-code-license-nc"), (None, None)],
)
def test_card_says_where_weights_come_from_and_whose_license_they_have(folder, version, license_name):
    write_converted_card(folder, RadioConfig.from_pretrained(folder, version=version), "nvidia/C-RADIOv4-H")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.license_name) == (license_name and "other", license_name)
    assert (card.data.base_model, card.data.base_model_relation) == (["nvidia/C-RADIOv4-H"], "quantized")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert f"# {version or 'RADIO'}, converted" in card.text
    assert "checkpoint `nvidia/C-RADIOv4-H`, converted without training." in card.text
    assert "keep the license that NVIDIA published them under" in card.text
    assert ("for non-commercial use" in card.text) == (version == "radio_v2.5-h")
    assert "Adaptors: teacher_a, teacher_b." in card.text
    assert "| Width, depth, attention heads | 16, 2, 2 |" in card.text
    assert "The same folder opens as transformers' native `RadioModel`" in card.text
    assert "## Texts" not in card.text


def test_what_native_transformers_does_otherwise_is_named(folder):
    config = RadioConfig.from_pretrained(folder, use_final_norm=True, adaptors=[], adaptor_names=[])
    write_converted_card(folder, config, "x")
    text = (folder / "README.md").read_text()
    assert "`trust_remote_code=True` only" in text
    assert "The reason:\na final norm." in text
    assert "Adaptors: none." in text


def test_code_runs_as_pasted_beside_the_folder(folder, monkeypatch, capsys):
    write_converted_card(folder, RadioConfig.from_pretrained(folder), "x")
    Image.new("RGB", (90, 60), (200, 120, 40)).save(folder.parent / "photo.jpg")
    monkeypatch.chdir(folder.parent)
    text = (folder / "README.md").read_text().replace("ORG/NAME", folder.name)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), {})
    assert "teacher_b None torch.Size([1, 10, 4, 6])" in capsys.readouterr().out
