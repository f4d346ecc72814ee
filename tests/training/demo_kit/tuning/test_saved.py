"""Saved models are measured on what they were tuned on."""

from dataclasses import replace

import pytest
from tiny_tuning import run_settings

from training.demo_kit.tuning.experiments import EXPERIMENTS
from training.demo_kit.tuning.raw_results import load_results
from training.demo_kit.tuning.runs import Grid
from training.demo_kit.tuning.saved import measure_training_images
from training.finetuning.pictures import predict_examples
from training.finetuning.run import FinetuningRun
from training.finetuning.tasks.examples import build_examples


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_what_was_tuned_knows_its_training_images(student, shades, tmp_path):
    grid = Grid(student, tmp_path / "words", tmp_path / "runs", tmp_path / "raw")
    experiment = EXPERIMENTS[shades]
    EXPERIMENTS[shades] = replace(experiment, options={**experiment.options, "steps": 60, "learning_rate": 0.01})
    grid.run(shades, "LoRA", 0)
    result = load_results(grid.results, shades)["LoRA", 0]
    assert result.training_metrics["accuracy"] == 1.0
    assert measure_training_images(grid.settings(shades, "LoRA", 0)) == pytest.approx(result.training_metrics)


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_models_with_words_are_measured_too(zero_shot_folder, class_folders, tune, tmp_path):
    task = "zero-shot-image-classification"
    run = FinetuningRun(run_settings(zero_shot_folder, class_folders, tmp_path / "run", task, tune=tune))
    run.run()
    examples = build_examples(run.task, run.task.images.train, "training image", is_training=False)
    count = len(run.task.images.validation)
    kept = predict_examples(run.task, run.trainer.model, examples, count)
    expected = (kept.predictions.argmax(dim=1) == kept.references).float().mean().item()
    assert measure_training_images(run.settings)["accuracy"] == pytest.approx(expected)
