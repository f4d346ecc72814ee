"""A tiny model, and held-out images that their colors tell apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_assets import assets
from PIL import Image
from tiny_adaptors import build_model_with_adaptors
from tuning_fixtures import class_folders, depth_folder, voc_folder

from modeling_radio import RadioModel
from training.demo.assets import DemoAssets
from training.demo.images import ClassificationSet, SegmentationSet
from training.evaluation.demo_data import DemoData
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.tasks.base import Evaluation, TaskSettings


__all__ = ["assets", "class_folders", "depth_folder", "voc_folder"]

COLORS = torch.tensor([[250, 20, 20], [20, 250, 20]], dtype=torch.uint8)


@pytest.fixture
def tiny_model() -> RadioModel:
    return build_model_with_adaptors("teacher_b")


@pytest.fixture
def data() -> DemoData:
    """Six objects per set that their color tells apart, and scenes whose left half is red, right half green."""
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[:, :, 8:] = 1
    scenes = COLORS[masks].movedim(-1, 1).contiguous()
    return DemoData(
        "toy",
        DemoAssets((), (), (), ("red", "green"), (), ""),
        ClassificationSet(_painted(labels), labels, _painted(labels.flip(0)), labels.flip(0), ("red", "green")),
        SegmentationSet(scenes, masks, scenes, masks, ("left", "right")),
        _painted(labels),
    )


def _painted(labels: torch.Tensor) -> torch.Tensor:
    return COLORS[labels][:, :, None, None].expand(-1, -1, 16, 16).contiguous()


@pytest.fixture
def pixels(data) -> Callable[..., Evaluation]:
    """Build the evaluation of raw pixels on the toy data, or on other data, with settings."""

    def build(other=None, **settings) -> Evaluation:
        return Evaluation(RawPixels(8, 16), data if other is None else other, TaskSettings(**settings))

    return build


@pytest.fixture
def noisy_folders(tmp_path) -> Path:
    """Class folders with `train/` and `test/` above them; images of many shapes whose colors overlap."""
    for split, count in (("train", 14), ("test", 7)):
        for number, name in enumerate(("ant", "bee", "cat")):
            write_noisy(tmp_path / "noisy" / split / name, number, count, seed=hash_of_text(split))
    return tmp_path / "noisy"


def hash_of_text(text: str) -> int:
    return sum(text.encode())


def write_noisy(folder: Path, number: int, count: int, seed: int = 0) -> None:
    """Write images of one class: its color, much noise, and a brightness of their own."""
    folder.mkdir(parents=True)
    for index in range(count):
        random = np.random.default_rng([seed, number, index])
        color = np.roll([150, 110, 110], number) + random.normal(0, 25, 3)
        noise = random.normal(color, 60, (24, 20 + index, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(autouse=True)
def _apart(one_thread: None, own_datasets_cache: None) -> None:
    """Use one thread in all tests of this folder, and a cache of `datasets` of their own."""
