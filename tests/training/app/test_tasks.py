"""Answers of tuned models: each task's own, and what thresholds change."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioImageProcessor,
)
from training.app import tasks
from training.app.opening import open_model
from training.app.tasks import READERS, predict


CLASSES = ["cat", "dog", "grass"]
OBJECTS = [RadioForObjectDetection, RadioForInstanceSegmentation, RadioForUniversalSegmentation]


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return open_model(str(folder), "cpu")


def outputs_of(opened, photograph):
    inputs = opened.processor(Image.open(photograph), return_tensors="pt")
    with torch.no_grad():
        return opened.model(**inputs)


def test_a_classifier_gives_scores_at_its_temperature(save_tuned, photograph):
    folder = save_tuned(RadioForImageClassification)
    opened = change(folder, temperature=2.0)
    found = predict(opened, photograph, 0.5)
    logits = outputs_of(opened, photograph).logits[0]
    assert list(found.scores) == CLASSES
    torch.testing.assert_close(torch.tensor(list(found.scores.values())), (logits / 2).softmax(dim=0))
    assert found.told.startswith(max(found.scores, key=found.scores.get))
    several = predict(change(folder, problem_type="multi_label_classification"), photograph, 0.5)
    torch.testing.assert_close(torch.tensor(list(several.scores.values())), (logits / 2).sigmoid())
    numbers = predict(change(folder, problem_type="regression"), photograph, 0.5)
    assert numbers.scores == {}
    assert (
        numbers.told
        == ", ".join(f"{name} {value:.3g}" for name, value in zip(CLASSES, logits.tolist(), strict=True)) + "."
    )


@pytest.mark.parametrize("padded", [False, True])
def test_a_segmenter_divides_the_photograph(save_tuned, photograph, padded):
    folder = save_tuned(RadioForSemanticSegmentation)
    if padded:
        padding = {"do_pad": True, "pad_size": {"height": 160, "width": 160}}
        RadioImageProcessor(size=64, **padding).save_pretrained(folder)
    picture, regions = predict(open_model(str(folder), "cpu"), photograph, 0.5).regions
    assert picture.size == (640, 360)
    assert {name for _, name in regions} <= set(CLASSES)
    assert sum(mask.astype(int) for mask, _ in regions).tolist() == np.ones((360, 640), dtype=int).tolist()


def test_depth_is_a_picture(save_tuned, photograph):
    found = predict(open_model(str(save_tuned(RadioForDepthEstimation)), "cpu"), photograph, 0.5)
    assert found.picture.size == (640, 360)
    assert found.picture.getextrema()[0][1] > 200
    assert found.told.startswith("Depth from ")


@pytest.mark.parametrize("model_class", OBJECTS)
def test_objects_count_from_a_score_on(save_tuned, photograph, model_class):
    opened = open_model(str(save_tuned(model_class)), "cpu")
    every, none = predict(opened, photograph, 0.0), predict(opened, photograph, 1.0)
    assert none.told == "0 objects."
    assert none.regions[1] == []
    assert len(every.regions[1]) > 1
    outputs = outputs_of(opened, photograph)
    logits = outputs.class_queries_logits if "class_queries_logits" in outputs else outputs.logits
    scores, places = logits.flatten().sigmoid().sort(descending=True)
    middle = float(scores[2:4].mean())
    expected = [
        f"{CLASSES[place % 3]} {score:.2f}"
        for score, place in zip(scores[:3].tolist(), places[:3].tolist(), strict=True)
    ]
    assert [label for _, label in predict(opened, photograph, middle).regions[1]] == expected
    region = every.regions[1][0][0]
    if model_class is RadioForObjectDetection:
        left, top, right, bottom = region
        assert 0 <= left <= right <= 640
        assert 0 <= top <= bottom <= 360
    else:
        assert region.shape == (360, 640)
        assert region.dtype == bool


def test_each_class_may_have_a_score_of_its_own(save_tuned, photograph):
    folder = save_tuned(RadioForObjectDetection)
    opened = change(folder, score_thresholds=[0.0, 1.0, 1.0])
    labels = {label.split()[0] for _, label in predict(opened, photograph, "tuned").regions[1]}
    assert labels == {"cat"}
    with pytest.raises(ValueError, match="needs `score_thresholds` of the 3 classes"):
        predict(change(folder, score_thresholds=None), photograph, "tuned")
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \[0, 1\]"):
        predict(opened, photograph, 1.5)


def test_the_most_certain_objects_are_drawn(save_tuned, photograph, monkeypatch):
    monkeypatch.setattr(tasks, "MAX_OBJECTS", 2)
    found = predict(open_model(str(save_tuned(RadioForObjectDetection)), "cpu"), photograph, 0.0)
    assert len(found.regions[1]) == 2
    assert ", of which 2 are drawn" in found.told


@pytest.mark.parametrize("model_class", [model_class for model_class, _ in READERS])
def test_half_precision_answers(save_tuned, photograph, model_class):
    assert predict(open_model(str(save_tuned(model_class)), "cpu", "bfloat16"), photograph, 0.1).told


def test_a_backbone_has_no_task(opened, photograph):
    with pytest.raises(ValueError, match="must be a model tuned for a task"):
        predict(opened, photograph, 0.5)
