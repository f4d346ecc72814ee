"""A tiny student, and a task of a few small images in place of the demo's."""

import numpy as np
import pytest
import torch
from PIL import Image
from tuning_fixtures import one_picture, own_datasets_cache

from modeling_radio import RadioConfig, RadioModel
from training.demo_kit.tuning.experiments import EXPERIMENTS, Arm, Experiment


__all__ = ["one_picture", "own_datasets_cache"]

TASK = "shades"


def write_shades(folder, size, draw):
    """Dark and light images; those of another draw have other noise."""
    random = np.random.default_rng(draw)
    for split, count in (("train", 4), ("validation", 3)):
        for name, shade in (("dark", 40), ("light", 200)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = random.integers(0, 50, (size, size, 3), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(shade)).save(folder / split / name / f"{number}.png")


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(autouse=True)
def shades(own_datasets_cache, one_picture):
    """Let there be one task alone, and afterwards the others in their order, which the page has."""
    options = {"steps": 2, "batch_size": 2, "lora_rank": 2}
    after = {"LoRA after head": Arm({"tune": "lora"}, "first the head", after="head")}
    experiment = Experiment("image-classification", write_shades, 32, options, "frozen linear probe", after, True)
    others = dict(EXPERIMENTS)
    EXPERIMENTS.clear()
    EXPERIMENTS[TASK] = experiment
    yield TASK
    EXPERIMENTS.clear()
    EXPERIMENTS.update(others)
