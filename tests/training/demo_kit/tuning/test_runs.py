"""Runs of the comparison: what is missing, what each starts from, and that nothing is run twice."""

import json
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from modeling_radio import RadioConfig, RadioModel
from training.demo_kit.tuning import runs
from training.demo_kit.tuning.experiments import EXPERIMENTS, arms_of
from training.demo_kit.tuning.raw_results import RawResultError, load_result, load_results
from training.demo_kit.tuning.runs import Grid, run_grid
from training.finetuning.models import configure
from training.recipe import load_recipe


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


WINDOWED = [
    (experiment, arm)
    for experiment in EXPERIMENTS.values()
    for arm in arms_of(experiment).values()
    if "window_size" in arm.options
]
"""Taken here, since a fixture leaves each test one task of its own."""


@pytest.fixture
def grid(student, tmp_path):
    return Grid(student, tmp_path / "words", tmp_path / "runs", tmp_path / "raw")


def test_runs_that_are_done_are_not_missing_and_those_of_other_settings_are_refused(grid, shades):
    arms = ["head", "LoRA"]
    assert grid.missing([shades], arms, [0, 1]) == [(shades, arm, seed) for seed in (0, 1) for arm in arms]
    grid.run(shades, "LoRA", 0)
    assert grid.missing([shades], arms, [0]) == [(shades, "head", 0)]
    path = grid.results / shades / "lora.seed-0.json"
    result = load_result(path)
    assert 0 < result.trainable_parameters < result.parameters
    assert set(result.metrics) == set(result.training_metrics) == {"accuracy", "balanced_accuracy", "f1"}
    assert result.settings["lora_rank"] == 2
    assert result.peak_memory_mb > 50
    assert not {"checkpoint", "data", "output"} & result.settings.keys()
    assert str(grid.output) not in path.read_text()
    content = json.loads(path.read_text())
    content["settings"]["lora_rank"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(RawResultError, match=r"lora\.seed-0\.json' is of other settings. Delete it to run it again"):
        grid.missing([shades], arms, [0])


def test_windows_of_an_arm_act_on_the_student_of_the_demo():
    student = RadioConfig(**load_recipe("demo").student.config)
    assert WINDOWED
    for experiment, arm in WINDOWED:
        settings = experiment.settings(0, checkpoint="demo", data="scenes", output="run", **arm.options)
        config = configure(student, Mock(settings=settings, size=settings.size, config_fields=dict))
        torch.manual_seed(0)
        model, pixels = RadioModel(config).eval(), torch.rand(1, 3, *settings.size)
        with torch.no_grad():
            assert not torch.allclose(model(pixels).features, model(pixels, window_size="global").features, atol=1e-3)


def test_what_takes_long_is_for_seed_0_alone_unless_named(grid, shades):
    EXPERIMENTS[shades] = replace(EXPERIMENTS[shades], seed_0_alone={"DoRA"})  # the fixture takes it away
    assert {seed for _, arm, seed in grid.missing([shades], [], [0, 1, 2]) if arm == "DoRA"} == {0}
    assert grid.missing([shades], ["DoRA"], [1]) == [(shades, "DoRA", 1)]


def test_an_arm_that_goes_on_starts_from_the_model_of_the_other_one(grid, shades):
    grid.run(shades, "LoRA after head", 0)
    assert set(load_results(grid.results, shades)) == {("head", 0), ("LoRA after head", 0)}
    settings = grid.settings(shades, "LoRA after head", 0)
    assert settings.checkpoint == str(grid.output / shades / "head-0" / "final")


def test_random_weights_are_others_for_each_seed_and_have_the_shape_of_the_student(grid, shades):
    for seed in (1, 2):  # the student's own is 0
        grid.prepare(shades, "full from random weights", seed)
    first, second, student = (
        load_file(folder / "model.safetensors")
        for folder in (grid.output / "random" / "seed-1", grid.output / "random" / "seed-2", grid.checkpoint)
    )
    assert {name: weight.shape for name, weight in first.items()} == {
        name: weight.shape for name, weight in student.items()
    }
    name = "radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], second[name])
    assert not torch.equal(first[name], student[name])


def test_random_weights_beside_a_text_tower_are_those_of_the_images_alone(grid, shades, zero_shot_folder):
    EXPERIMENTS[shades] = replace(EXPERIMENTS[shades], task="zero-shot-image-classification", has_words=True)
    grid = replace(grid, words=zero_shot_folder)
    grid.prepare(shades, "full from random weights", 1)
    folder = grid.output / "random" / "words-1"
    before, after = (load_file(path / "model.safetensors") for path in (zero_shot_folder, folder))
    assert before.keys() == after.keys()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("text_tower.", "logit_"))} <= kept
    assert "radio_model.model.blocks.0.attn.qkv.weight" not in kept
    grid.run(shades, "full from random weights", 1)  # it opens, with the tokenizer


def test_those_that_go_on_are_run_last(grid, shades, monkeypatch):
    order = []
    # Threads in place of processes, which would not know of what is replaced here.
    threads = Mock(Pool=lambda jobs, begin, maxtasksperchild: ThreadPool(jobs))
    monkeypatch.setattr(runs.multiprocessing, "get_context", lambda method: threads)
    monkeypatch.setattr(Grid, "run", lambda self, *run: order.append(run))
    wanted = [(shades, "LoRA after head", 0), (shades, "head", 0), (shades, "LoRA", 0)]
    monkeypatch.setattr(Grid, "prepare", lambda self, *run: order.append("images"))
    assert set(run_grid(grid, wanted, 1)) == set(wanted)
    assert order.pop(0) == "images"  # once for the three runs, and first
    assert order[-1] == (shades, "LoRA after head", 0)
