"""Pictures are drawn of what was run, from what was saved."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.demo_kit.tuning.experiments import EXPERIMENTS, Arm
from training.demo_kit.tuning.pictures import PICTURED, draw_lengths, draw_runs, draw_scores
from training.demo_kit.tuning.report import LOSSES, PREDICTIONS, SCORES, STEPS, build_report
from training.demo_kit.tuning.runs import Grid


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def grid(student, tmp_path):
    return Grid(student, tmp_path / "words", tmp_path / "runs", tmp_path / "raw")


def test_runs_are_drawn_once_all_of_them_lie_in_the_output_and_the_page_shows_them(grid, shades):
    experiment = EXPERIMENTS[shades]
    EXPERIMENTS[shades] = replace(experiment, options={**experiment.options, "steps": 20})  # two records of the loss
    folder = grid.results / shades
    for arm in PICTURED:
        draw_runs(grid, shades, 0)
        assert not (folder / PREDICTIONS).exists()
        grid.run(shades, arm, 0)
    assert f"studies/tuning/{shades}/{PREDICTIONS}" not in build_report(grid.results)
    draw_runs(grid, shades, 0)
    for name in (PREDICTIONS, LOSSES):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
        assert f"](studies/tuning/{shades}/{name})" in build_report(grid.results)


def test_lengths_are_drawn_once_there_are_two(grid, shades):
    twice = {f"{arm} for twice the steps": Arm({"tune": arm.lower(), "steps": 4}, "time") for arm in ("head", "LoRA")}
    EXPERIMENTS[shades] = replace(EXPERIMENTS[shades], arms=twice)
    path = grid.results / shades / STEPS
    for arm in ("head", "LoRA", *twice):
        draw_lengths(grid.results, shades)
        assert not path.exists()
        grid.run(shades, arm, 0)
    draw_lengths(grid.results, shades)
    with Image.open(path) as picture:
        assert picture.width > 300
    assert f"](studies/tuning/{shades}/{STEPS})" in build_report(grid.results)


def test_scores_change_with_what_was_run(grid, shades):
    draw_scores(grid.results)  # nothing was run
    assert not grid.results.exists()
    pictures = []
    for arm in ("head", "LoRA"):
        grid.run(shades, arm, 0)
        draw_scores(grid.results)
        with Image.open(grid.results / SCORES) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize((90, 45))).astype(float))
    assert np.abs(pictures[0] - pictures[1]).max() > 20
    assert f"](studies/tuning/{SCORES})" in build_report(grid.results)
