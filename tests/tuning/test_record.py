"""Cards of tuned folders, filled from what the run hands them."""

import re

import pytest
from huggingface_hub import ModelCard
from tiny_tuning import run_settings

from modeling_radio.metrics.results import Source
from modeling_radio.model_cards.card import main
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.tuning.run import FINAL, MERGED, FinetuningRun


TEACHER = Source("dino", "features (8)", "dinov3-license", "facebook/dinov3", hub_id="facebook/dinov3")


@pytest.fixture
def tuned(base, class_folders, tmp_path):
    """A tuned adapter with its merged model, of a base with a teacher and a license."""
    Lineage([TEACHER], images=[Source("photos", "training: images", "CC0-1.0", "folder photos")]).save(base)
    assert main([str(base), "--license", "apache-2.0"]) == 0
    FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", merge=True)).run()
    return tmp_path / "run"


def test_the_cards_are_those_of_a_classifier(tuned, base):
    for folder in (FINAL, MERGED):
        check_card(folder, tuned, base)


def check_card(folder, tuned, base):
    assert main([str(tuned / folder), "--license", "mit"]) == 0
    card = ModelCard.load(tuned / folder / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "mit"
    assert {result.task_type for result in card.data.eval_results} == {"image-classification"}
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "f1"}
    assert "| 0 | cat |\n| 1 | dog |" in card.text
    assert "training: labeled images" in card.text
    assert re.search(r"\d+ images(, \d+ of each class|: cat \d+, dog \d+) ", card.text)
    assert "validation images" in card.text
    assert f"| {base.name}: dino | teacher of {base.name} |  | dinov3-license |" in card.text
    assert f"| {base.name} | weights |" in card.text
    assert f"{base.name}: photos" in card.text
    assert "has terms of its own" in card.text
    assert f"| command | radio finetune {base.name} " in card.text
    assert "task=image-classification" in card.text
    assert str(tuned) not in card.text
    assert "## Output" not in card.text
    assert re.search(r"\*\*student\*\* \(this checkpoint\) \| \d\.\d{3}", card.text)
    assert "vision backbone" not in card.text
    assert 'AutoModelForImageClassification.from_pretrained("ORG/NAME"' in card.text
