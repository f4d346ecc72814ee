"""Labels that follow the features, on a video whose answer is known."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio.evaluation import data_videos
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.data_videos import Frames
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks import label_propagation
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.label_propagation import (
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
    propagated(maps, {0: torch.zeros(4, 4, dtype=torch.long)})
    assert numbers[0] == [0]
    assert numbers[-1] == [0, 3, 4, 5, 6, 7, 8, 9]


def test_an_object_that_appears_later_is_followed_from_there():
    before, after = torch.eye(20)[:, :16].reshape(20, 4, 4), torch.eye(20)[:, 4:].reshape(20, 4, 4)
    before[:, :3] = after[:, :3]  # the last row changes when the object appears there
    maps = [before, before, after, after]
    first, later = torch.zeros(2, 4, 4, dtype=torch.long)
    first[0], later[3] = 1, 2
    labels = [each.argmax(0) for each in propagated(maps, {1: first, 2: later})]
    assert labels[0].max() == 0
    assert torch.equal(labels[1], first)
    assert torch.equal(labels[2], first + later)
    assert torch.equal(labels[3], first + later)


def test_labels_are_stretched_before_they_compete():
    labels = torch.tensor([[[0.6, 0.9]], [[0.4, 0.1]]])
    assert upsampled_labels(labels, 2, (2, 4)).tolist() == [[1, 1, 0, 0]] * 2


def test_davis_runs_to_the_end(davis_folder, reference, tmp_path):
    settings = EvaluationSettings(checkpoint=tmp_path, data=str(davis_folder), preset="davis", size=64)
    data = open_data(str(davis_folder), settings, size_px=64)
    evaluation = Evaluation(RawPixels(8, 64), data, settings)
    measured = {each.metric: each.value for each in measure_label_propagation(evaluation)}
    assert 0.9 < measured["J"] < 1  # the objects end where patches do, and stand still; their corners become round
    assert measured["J&F"] == pytest.approx((measured["J"] + measured["F"]) / 2)
    assert data.part("videos").test.images[0].shape == (3, 64, 64)
    of_reference = measure_label_propagation(Evaluation(RadioFeatures(reference, size_px=64), data, settings))
    assert all(0 <= each.value <= 1 for each in of_reference)


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


@pytest.fixture
def youtube_folder(davis_folder, monkeypatch):
    """YouTube-VOS with the videos of DAVIS; the second object of the dog appears in the second frame."""
    folder = davis_folder.parent / "YouTubeVOS"
    for video in ("cow", "dog"):
        shutil.copytree(davis_folder / "JPEGImages" / "480p" / video, folder / "valid" / "JPEGImages" / video)
        own = davis_folder / "Annotations" / "480p" / video / "00000.png"
        ids = np.array(Image.open(own))
        place = folder / "valid" / "Annotations" / video
        place.mkdir(parents=True)
        Image.fromarray(ids * (ids != 2) if video == "dog" else ids).save(place / "00000.png")
    Image.fromarray(ids * (ids == 2)).save(place / "00001.png")
    monkeypatch.setattr(data_videos, "YOUTUBE_OBJECTS", {2: 4})
    return folder


def test_masks_of_youtube_vos_are_written_for_its_server(youtube_folder, reference, tmp_path):
    options = {"checkpoint": tmp_path, "data": str(youtube_folder), "preset": "youtube-vos", "size": 64}
    settings = EvaluationSettings(**options, predictions=tmp_path / "Annotations")
    data = open_data(str(youtube_folder), settings, size_px=64)
    assert measure_label_propagation(Evaluation(RawPixels(8, 64), data, settings)) == []
    assert not settings.predictions.exists()  # those of the checkpoint are written
    model = RadioFeatures(reference, size_px=64)
    assert measure_label_propagation(Evaluation(model, data, settings)) == []
    frames = sorted(str(path.relative_to(settings.predictions)) for path in settings.predictions.glob("*/*"))
    assert frames == [f"{video}/{number:05d}.png" for video in ("cow", "dog") for number in range(4)]
    written = [Image.open(settings.predictions / "dog" / f"{number:05d}.png") for number in range(4)]
    assert {image.mode for image in written} == {"P"}
    true = np.array(Image.open(tmp_path / "DAVIS" / "Annotations" / "480p" / "dog" / "00000.png"))
    ids = np.stack([np.array(image) for image in written])
    assert (ids[0] == true * (true != 2)).all()
    assert (ids[1][true == 2] == 2).all()
    assert set(np.unique(ids[2:])) == {0, 1, 2}
    for predictions in (settings.predictions, None):
        again = EvaluationSettings(**options, predictions=predictions)
        with pytest.raises(ValueError, match="`predictions`"):
            measure_label_propagation(Evaluation(model, data, again))


@pytest.mark.parametrize("damage", ["a video", "a mask", "frames"])
def test_a_part_of_youtube_vos_is_refused(youtube_folder, damage):
    shutil.rmtree(youtube_folder / "valid" / ("Annotations" if damage == "a mask" else "JPEGImages") / "cow")
    if damage == "frames":
        (youtube_folder / "valid" / "JPEGImages" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"`data` .*YouTube-VOS"):
        data_videos.open_youtube_vos(youtube_folder, 64)
