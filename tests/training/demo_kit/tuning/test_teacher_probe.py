"""A linear head on a teacher learns what the teacher tells apart."""

import numpy as np
import pytest
import torch
from tiny_tuning import tuning_settings
from torch import nn

from training.demo_kit.tuning import teacher_probe
from training.demo_kit.tuning.teacher_probe import probe_teacher
from training.teachers.answers import TeacherOutput
from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Teacher


class MeanColor(Teacher):
    """Says the mean color of an image, and of each of its patches."""

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name, *, has_summary=True):
        super().__init__(name, summary_dim=3 if has_summary else None, feature_dim=3, patch_size=16)
        self.pool, self.has_summary = nn.AvgPool2d(16), has_summary
        self.freeze()

    def encode(self, pixel_values):
        features = self.pool(pixel_values)
        return TeacherOutput(features.mean((2, 3)) if self.has_summary else None, features)


@pytest.fixture(autouse=True)
def mean_color(monkeypatch):
    def build(name, *, kind):
        teacher = MeanColor(name, has_summary=kind == "mean")
        teacher.set_run_mode(None, 16)
        return teacher

    monkeypatch.setattr(teacher_probe, "build_teacher", build)


def settings(data, **options):
    return tuning_settings(data=data, size=(32, 32), steps=60, batch_size=4, head_learning_rate=0.05, **options)


@pytest.fixture
def data(tmp_path, shades):
    from training.demo_kit.tuning.experiments import EXPERIMENTS

    EXPERIMENTS[shades].write(tmp_path / "data", 32, 0)
    return tmp_path / "data"


def test_shades_are_told_apart_by_color(data):
    found = probe_teacher("mean", settings(data))
    assert found["metrics"]["accuracy"] == 1.0
    assert found["trainable_parameters"] == 3 * 2 + 2 + 3 * 2  # norm, weights, bias
    assert found["parameters"] == found["trainable_parameters"] + 3 + 3  # buffers count: colors' mean and deviation
    assert found["seconds"] > 0


def test_masks_are_told_apart_in_each_place(tmp_path):
    from PIL import Image

    for number in range(4):
        for split in ("train", "validation"):
            for folder in ("images", "masks"):
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            shade = torch.zeros(32, 32, dtype=torch.uint8)
            shade[:, 16 * (number % 2) :] = 1
            Image.fromarray((shade * 200).numpy()).convert("RGB").save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(shade.numpy()).save(tmp_path / split / "masks" / f"{number}.png")
    found = probe_teacher("mean", settings(tmp_path, task="semantic-segmentation"))
    assert found["metrics"]["pixel_accuracy"] > 0.9


def test_depth_follows_what_is_seen_in_each_place(tmp_path):
    from PIL import Image

    for number in range(4):
        for split in ("train", "validation"):
            shade = np.zeros((32, 32), dtype=np.uint8)
            shade[:, 16 * (number % 2) :] = 200
            (tmp_path / split / "images").mkdir(parents=True, exist_ok=True)
            (tmp_path / split / "depth").mkdir(exist_ok=True)
            Image.fromarray(shade).convert("RGB").save(tmp_path / split / "images" / f"{number}.png")
            np.save(tmp_path / split / "depth" / f"{number}.npy", np.where(shade, 8.0, 4.0).astype(np.float32))
    found = probe_teacher("mean", settings(tmp_path, task="depth-estimation"))
    assert found["metrics"]["abs_rel"] < 0.15  # the mean logarithm alone has .35
    assert found["trainable_parameters"] == 3 * 2 + 3 + 1


def test_words_move_with_a_projection(data, zero_shot_folder):
    task = "zero-shot-image-classification"
    for split in ("train", "validation"):  # the tiny tokenizer knows few words
        (data / split / "dark").rename(data / split / "cat")
        (data / split / "light").rename(data / split / "dog")
    found = probe_teacher("mean", settings(data, task=task, checkpoint=str(zero_shot_folder)))
    assert found["metrics"]["accuracy"] == 1.0  # the texts' tower is random: a constant answer has .5
    assert found["trainable_parameters"] == 3 * 16 + 16


def test_boxes_take_more_than_one_layer(outlines_folder):
    with pytest.raises(ValueError, match="`task` must be one that a head of one layer can do, got 'object-detection'"):
        probe_teacher("mean", settings(outlines_folder, task="object-detection"))


def test_a_teacher_without_a_summary_classifies_nothing(data):
    with pytest.raises(ValueError, match="`teacher` 'no summary' has no summary to classify by"):
        probe_teacher("no summary", settings(data))
