"""A task of a few small images in place of the demo's."""

import pytest
from tuning_fixtures import write_shades

from training.demo_kit.tuning.experiments import EXPERIMENTS, TEACHERS, Arm, Experiment


TASK = "shades"


@pytest.fixture(autouse=True)
def shades(own_datasets_cache, one_picture):
    """Let there be one task alone, and afterwards the others in their order, which the page has."""
    options = {"steps": 2, "batch_size": 2, "lora_rank": 2}
    after = {"LoRA after head": Arm({"tune": "lora"}, "first the head", after="head")}
    experiment = Experiment(
        "image-classification", write_shades, 32, options, "frozen linear probe", after, teachers=TEACHERS
    )
    others = dict(EXPERIMENTS)
    EXPERIMENTS.clear()
    EXPERIMENTS[TASK] = experiment
    yield TASK
    EXPERIMENTS.clear()
    EXPERIMENTS.update(others)
