"""Timed steps are those of a run, and parts are what they take."""

from pathlib import Path

import pytest
from tiny_distillation import assert_same_tensors, distil, last_state

from benchmarks.measuring.steps import StepTimer
from training.distillation.trainer import Distiller
from training.recipe import load_recipe


@pytest.mark.usefixtures("one_thread", "tiny_world")
def test_timed_steps_are_the_steps_of_a_run(recipe_file: str) -> None:
    distil(recipe_file, "run", "schedule.num_steps=4")
    distiller = Distiller(load_recipe(recipe_file, ["schedule.num_steps=4"]), Path("timed"))
    distiller._build()
    timer = StepTimer(distiller)
    timer.run(1)
    seconds = timer.run(3)
    expected = {name: value for name, value in last_state("run", 4).items() if name.startswith("student/")}
    assert_same_tensors({f"student/{name}": value for name, value in distiller.model.state_dict().items()}, expected)
    parts = {name: value for name, value in seconds.items() if name not in ("wall", "cpu")}
    assert parts.keys() == {"data", "passes", "optimizer", "average"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(seconds["wall"])
