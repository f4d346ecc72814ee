"""Labels that follow the features, on a video whose answer is known."""

import shutil

import pytest
import torch
from PIL import Image

from modeling_radio.training.evaluation import data_videos
from modeling_radio.training.evaluation.data_tables import open_data
from modeling_radio.training.evaluation.data_videos import Frames
from modeling_radio.training.evaluation.models.pretrained import RawPixels
from modeling_radio.training.evaluation.settings import EvaluationSettings
from modeling_radio.training.evaluation.tasks import label_propagation
from modeling_radio.training.evaluation.tasks.base import Evaluation
from modeling_radio.training.evaluation.tasks.label_propagation import (
    measure_label_propagation,
    propagated,
    upsampled_labels,
)


def test_the_first_and_the_last_seven_frames_give_labels(monkeypatch):
    numbers = []

    def remembered(features, known):
        numbers.append([int(other.argmax()) for other, _ in known])
        return known[0][1]

    monkeypatch.setattr(label_propagation, "propagate", remembered)
    maps = [torch.eye(12)[:, number, None, None] for number in range(11)]
    propagated(maps, torch.zeros(4, 4, dtype=torch.long))
    assert numbers[0] == [0]
    assert numbers[-1] == [0, 3, 4, 5, 6, 7, 8, 9]


def test_labels_are_stretched_before_they_compete():
    labels = torch.tensor([[[0.6, 0.9]], [[0.4, 0.1]]])
    assert upsampled_labels(labels, 2, (2, 4)).tolist() == [[1, 1, 0, 0]] * 2


def test_davis_runs_to_the_end(davis_folder, tmp_path):
    settings = EvaluationSettings(checkpoint=tmp_path, data=str(davis_folder), preset="davis", size=64)
    data = open_data(str(davis_folder), settings, size_px=64)
    evaluation = Evaluation(RawPixels(8, 64), data, settings)
    measured = {each.metric: each.value for each in measure_label_propagation(evaluation)}
    assert 0.9 < measured["J"] < 1  # the objects end where patches do, and stand still; their corners become round
    assert measured["J&F"] == pytest.approx((measured["J"] + measured["F"]) / 2)
    assert data.part("videos").test.images[0].shape == (3, 64, 64)


def test_frames_have_the_sizes_of_dino(tmp_path):
    for name, size in (("wide", (854, 480)), ("high", (480, 854))):
        Image.new("RGB", size).save(tmp_path / f"{name}.jpg")
    frames = Frames([tmp_path / "wide.jpg", tmp_path / "high.jpg"], 480)
    assert [frames.size(0), frames.size(1)] == [(480, 832), (832, 480)]
    assert frames[0].shape == (3, 480, 832)


def test_a_part_of_davis_is_refused(davis_folder, monkeypatch):
    (davis_folder / "Annotations" / "480p" / "cow" / "00001.png").unlink()
    with pytest.raises(ValueError, match=r"`data` .*cow"):
        data_videos.open_davis(davis_folder, 64)
    shutil.rmtree(davis_folder / "Annotations")
    (davis_folder / "ImageSets" / "2017" / "val.txt").write_text("cow\n")
    with pytest.raises(ValueError, match=r"`data` .*2 validation videos of DAVIS 2017, got 1"):
        data_videos.open_davis(davis_folder, 64)
