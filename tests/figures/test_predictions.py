"""Every kind of checkpoint opens by its class and nothing else does; photographs are read; each task has its output."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import CLASSES

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioImageProcessor,
)
from modeling_radio.core.opening import open_model
from modeling_radio.figures import predictions
from modeling_radio.figures.predictions import predict, read_photograph


PROCESSOR = RadioImageProcessor()
OBJECT_MODELS = [RadioForObjectDetection, RadioForInstanceSegmentation, RadioForUniversalSegmentation]


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_a_photograph_is_rotated_as_its_camera_says(picture):
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    pixels = read_photograph(picture(image, exif=exif))
    assert (pixels.shape, pixels.dtype) == ((3, 30, 20), torch.uint8)
    assert pixels[:, 2, 10].tolist() == [0, 0, 255]
    assert pixels[:, 27, 10].tolist() == [255, 0, 0]


def test_files_that_are_no_photographs_are_refused(picture, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`image`"):
        read_photograph(None)
    picture(Image.effect_noise((64, 64), 90), "half.png")
    half = (tmp_path / "half.png").read_bytes()[:600]
    for name, content in {"text.svg": b"<svg/>", "broken.jpg": b"\xff\xd8\xff\xe0 none", "half.png": half}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"`image` .*'{name}'") as caught:
            read_photograph(tmp_path / name)
        assert str(tmp_path) not in str(caught.value), "no path of the server is told"
    monkeypatch.setattr(predictions, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"`image` .*64 x 64"):
        read_photograph(picture(Image.new("RGB", (64, 64)), "large.png"))


def open_edited(folder, **fields):
    return open_model(str(edit_config(folder, **fields)), device="cpu")


def read(photograph):
    return read_photograph(photograph)


def outputs_of(opened, photograph):
    with torch.no_grad():
        return opened.model(**opened.processor(Image.open(photograph), return_tensors="pt"))


def test_a_classifier_gives_scores_at_its_temperature(save_tuned, photograph):
    folder = save_tuned(RadioForImageClassification)
    opened = open_edited(folder, temperature=2.0)
    found, logits = predict(opened, read(photograph)), outputs_of(opened, photograph).logits[0]
    assert list(found.scores) == CLASSES
    torch.testing.assert_close(torch.tensor(list(found.scores.values())), (logits / 2).softmax(dim=0))
    assert found.description.startswith(max(found.scores, key=found.scores.get))
    several = predict(open_edited(folder, problem_type="multi_label_classification"), read(photograph))
    torch.testing.assert_close(torch.tensor(list(several.scores.values())), (logits / 2).sigmoid())
    numbers = predict(open_edited(folder, problem_type="regression"), read(photograph))
    assert numbers.scores == {}
    assert numbers.description.startswith(f"{CLASSES[0]} {logits[0]:.3g}, ")


@pytest.mark.parametrize("padded", [False, True])
def test_a_segmenter_divides_the_photograph(save_tuned, photograph, padded):
    folder = save_tuned(RadioForSemanticSegmentation)
    if padded:
        padding = {"do_pad": True, "pad_size": {"height": 160, "width": 160}}
        RadioImageProcessor(size=64, **padding).save_pretrained(folder)
    found = predict(open_model(str(folder), device="cpu"), read(photograph))
    assert found.photograph.shape == (3, 360, 640)
    assert {region.label for region in found.regions} <= set(CLASSES)
    assert (sum(region.area.astype(int) for region in found.regions) == np.ones((360, 640))).all()


def test_depth_is_an_image_of_a_model_with_head_and_processor(save_tuned, photograph):
    folder = save_tuned(RadioForDepthEstimation)
    RadioImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    opened, pixels = open_model(str(folder), device="cpu"), torch.rand(1, 3, 32, 48)
    assert (type(opened.model), opened.has_head) == (RadioForDepthEstimation, True)
    assert opened.processor.size["width"] == 48
    assert torch.equal(opened.backbone(pixels).features, opened.model.base_model(pixels).features)
    found = predict(opened, read(photograph))
    assert found.depth.shape == (3, 360, 640)
    assert found.depth[0].max() > 200
    assert found.drawn() is found.depth
    assert found.description.startswith("Depth from ")


@pytest.mark.parametrize("model_class", OBJECT_MODELS)
def test_objects_count_from_a_score_on_the_most_certain_first(save_tuned, photograph, model_class, monkeypatch):
    opened = open_model(str(save_tuned(model_class)), device="cpu")
    every, none = predict(opened, read(photograph), 0.0), predict(opened, read(photograph), 1.0)
    assert (none.description, none.regions) == ("0 objects.", [])
    assert torch.equal(none.drawn(), none.photograph)
    assert len(every.regions) > 1
    assert not torch.equal(every.drawn(), every.photograph)
    outputs = outputs_of(opened, photograph)
    logits = outputs.class_queries_logits if "class_queries_logits" in outputs else outputs.logits
    scores, places = logits.flatten().sigmoid().sort(descending=True)
    found = zip(scores[:3].tolist(), places[:3].tolist(), strict=True)
    expected = [f"{CLASSES[place % 3]} {score:.2f}" for score, place in found]
    assert [each.label for each in predict(opened, read(photograph), float(scores[2:4].mean())).regions] == expected
    area = every.regions[0].area
    if model_class is RadioForObjectDetection:
        assert 0 <= area[0] <= area[2] <= 640
        assert 0 <= area[1] <= area[3] <= 360
    else:
        assert (area.shape, area.dtype) == ((360, 640), bool)
    monkeypatch.setattr(predictions, "MAX_OBJECTS", 2)
    few = predict(opened, read(photograph), 0.0)
    assert [each.label for each in few.regions] == expected[:2]
    assert ", of which 2 are drawn" in few.description


def test_each_class_may_have_a_score_of_its_own(save_tuned, opened, photograph):
    folder = save_tuned(RadioForObjectDetection)
    tuned = open_edited(folder, score_thresholds=[0.0, 1.0, 1.0])
    assert {each.label.split()[0] for each in predict(tuned, read(photograph), "tuned").regions} == {"cat"}
    for model, threshold, named in (
        (tuned, 1.5, "`threshold`"),
        (open_edited(folder, score_thresholds=None), "tuned", "`score_thresholds`"),
        (opened, 0.5, "`checkpoint`"),  # without a task
    ):
        with pytest.raises(ValueError, match=named):
            predict(model, read(photograph), threshold)


@pytest.mark.parametrize("model_class", [RadioForSemanticSegmentation, RadioForInstanceSegmentation])
def test_half_precision_predicts(save_tuned, photograph, model_class):
    assert predict(
        open_model(str(save_tuned(model_class)), device="cpu", dtype="bfloat16"), read(photograph), 0.1
    ).description
