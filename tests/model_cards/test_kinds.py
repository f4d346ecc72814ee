"""Cards of converted checkpoints and of task models."""

import re
import shutil

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from refusals import refused
from tiny_tuning import TINY_DETECTOR, TINY_DPT

import modeling_radio
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.metrics.results import Measurement, Results
from modeling_radio.model_cards.build import build_card, write_card
from modeling_radio.model_cards.card import main
from modeling_radio.model_cards.kinds import Conversion
from modeling_radio.model_cards.licenses import License


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "radio-tiny")


@pytest.mark.parametrize(
    ("version", "license_name"),
    [("c-radio_v4-h", "nvidia-open-model-license"), ("radio_v2.5-h", "nvidia-source-code-license-nc"), (None, None)],
)
def test_card_says_where_weights_come_from_and_whose_license_they_have(folder, version, license_name, tmp_path):
    RadioConfig.from_pretrained(folder, version=version).save_pretrained(folder)
    Conversion("nvidia/C-RADIOv4-H").save(folder)
    write_card(folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.license_name) == (license_name and "other", license_name)
    assert (card.data.base_model, card.data.base_model_relation) == (["nvidia/C-RADIOv4-H"], "quantized")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert f"# {version or 'radio-tiny'}, converted" in card.text
    assert "checkpoint `nvidia/C-RADIOv4-H`, converted without training." in card.text
    assert ("for non-commercial use" in card.text) == (version == "radio_v2.5-h")
    assert "## Texts" not in card.text
    RadioModel.from_pretrained(folder).save_pretrained(tmp_path / "trained")  # not converted any more
    assert Conversion.find(tmp_path / "trained") is None
    assert "converted without training" not in build_card(tmp_path / "trained").text


def test_code_runs_as_pasted_beside_the_folder(folder, monkeypatch, capsys):
    Conversion("x").save(folder)
    write_card(folder)
    Image.new("RGB", (90, 60), (200, 120, 40)).save(folder.parent / "photo.jpg")
    monkeypatch.chdir(folder.parent)
    text = (folder / "README.md").read_text().replace("ORG/NAME", folder.name)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), {})
    assert "teacher_b None torch.Size([1, 10, 4, 6])" in capsys.readouterr().out


NUMBER = {"problem_type": "regression", "num_labels": 1}


@pytest.mark.parametrize(
    ("name", "fields", "printed"),
    [
        ("RadioForImageClassification", {}, r"\[\{'label': 'LABEL_\d', 'score': .*\nLABEL_\d\n"),
        (
            "RadioForImageClassification",
            {"problem_type": "multi_label_classification"},
            r"\n\{'LABEL_0': 0\.\d+, 'LABEL_1",
        ),
        ("RadioForImageClassification", NUMBER, r"\n\[-?\d+\.\d+\]\n"),
        ("RadioForSemanticSegmentation", {}, r"'mask': <PIL.*\ntensor\("),
        ("RadioForInstanceSegmentation", {}, r"\[.*\]\n\{'segmentation'"),
        ("RadioForUniversalSegmentation", {}, r"\[.*\]\n\{'segmentation'"),
        ("RadioForObjectDetection", {}, r"\[.*\]\n\{'scores'"),
        ("RadioForDepthEstimation", {}, r"'depth': <PIL.*\n\{'predicted_depth'"),
    ],
)
def test_code_of_task_models_runs_as_pasted_beside_the_folder(name, fields, printed, tmp_path, monkeypatch, capsys):
    config = RadioConfig.from_preset("radio-test", preferred_resolution=[32, 48], **TINY_DETECTOR, **TINY_DPT, **fields)
    getattr(modeling_radio, name)(config).save_pretrained(tmp_path / "tuned")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "tuned")
    Image.new("RGB", (48, 32), (200, 120, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = build_card(tmp_path / "tuned").text.replace("ORG/NAME", "tuned")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), {})
    assert re.search(printed, capsys.readouterr().out)


def test_a_card_that_is_written_again_keeps_what_it_said(folder, tmp_path):
    """By the one command for cards, with a name and results: origin, license and text tower stay."""
    RadioConfig.from_pretrained(folder, version="c-radio_v4-h").save_pretrained(folder)
    Conversion("nvidia/C-RADIOv4-H", "google/siglip2").save(folder)
    first = build_card(folder)
    assert "## Results" not in first.text
    Results([Measurement("student", "knn", "accuracy", "stamps", 0.4567)]).save(tmp_path / "results.json")
    words = ["--results", str(tmp_path / "results.json"), "--model-id", "org/c-radiov4"]
    assert main([str(folder), *words]) == 0
    again = ModelCard.load(folder / "README.md")
    assert again.data.license_name == first.data.license_name == "nvidia-open-model-license"
    assert again.data.base_model == ["nvidia/C-RADIOv4-H", "google/siglip2"]
    assert "converted without training" in again.text
    assert "The text tower is that of `google/siglip2`" in again.text
    assert 'from_pretrained("org/c-radiov4", trust_remote_code=True)' in again.text
    assert "| **student** (this checkpoint) | 0.457 |" in again.text


def test_nvidias_license_cannot_be_replaced_where_it_is_known(folder):
    Conversion("x").save(folder)
    assert build_card(folder, license=License("mit")).data.license == "mit"  # of no known version
    RadioConfig.from_pretrained(folder, version="c-radio_v4-h").save_pretrained(folder)
    refused("license", lambda: build_card(folder, license=License("mit")))
