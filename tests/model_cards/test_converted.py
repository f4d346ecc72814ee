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


def test_card_says_where_weights_come_from_and_whose_license_they_have(folder):
    write_converted_card(folder, RadioConfig.from_pretrained(folder), "nvidia/C-RADIOv4-H")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "see-source")
    assert "# RADIO, converted" in card.text
    assert "checkpoint `nvidia/C-RADIOv4-H`, converted without training. Their license is NVIDIA's" in card.text
    assert "Adaptors: teacher_a, teacher_b." in card.text
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
    exec("\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)), {})
    assert "teacher_b None torch.Size([1, 10, 4, 6])" in capsys.readouterr().out
