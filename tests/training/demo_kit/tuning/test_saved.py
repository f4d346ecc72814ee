"""Saved models are measured on what they were tuned on."""

from dataclasses import replace

import pytest

from training.demo_kit.tuning.experiments import EXPERIMENTS
from training.demo_kit.tuning.raw_results import load_results
from training.demo_kit.tuning.runs import Grid
from training.demo_kit.tuning.saved import measure_training_images


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_what_was_tuned_knows_its_training_images(student, shades, tmp_path):
    grid = Grid(student, tmp_path / "words", tmp_path / "runs", tmp_path / "raw")
    experiment = EXPERIMENTS[shades]
    EXPERIMENTS[shades] = replace(experiment, options={**experiment.options, "steps": 60, "learning_rate": 0.01})
    grid.run(shades, "LoRA", 0)
    result = load_results(grid.results, shades)["LoRA", 0]
    assert result.training_metrics["accuracy"] == 1.0
    assert measure_training_images(grid.settings(shades, "LoRA", 0)) == pytest.approx(result.training_metrics)
