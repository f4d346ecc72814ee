"""The server's answers are the pipeline's, for each task; /features are the backbone's."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from releases import needs_heads
from tiny_folders import overflow
from tiny_tuning import TINY_DETECTOR, TINY_DPT


pytest.importorskip("fastapi", reason="needs the extra `app`")
from starlette.testclient import TestClient

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.core.opening import open_model
from modeling_radio.prediction import answers
from modeling_radio.prediction.answers import NOT_FINITE, Answering
from modeling_radio.serving.serve import ServeSettings, build_app


SIZES = [(70, 50), (33, 90), (64, 64)]


def body_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture
def served():
    """A function that returns a client of a server for a folder."""

    def client(folder, **options):
        return TestClient(build_app(ServeSettings(checkpoint=str(folder), device="cpu", **options)))

    return client


@needs_heads
@pytest.mark.parametrize(
    ("model_class", "fields", "options"),
    [
        (RadioForImageClassification, {}, {}),
        (RadioForSemanticSegmentation, {}, {}),
        (RadioForDepthEstimation, TINY_DPT, {}),
        (RadioForObjectDetection, TINY_DETECTOR, {"threshold": 0.0}),
        (RadioForInstanceSegmentation, TINY_DETECTOR, {"threshold": 0.0}),
    ],
)
def test_answers_are_those_of_the_pipeline(model_class, fields, options, save_tuned, images, served):
    folder = save_tuned(model_class, **fields)
    opened = open_model(str(folder), device="cpu")
    expected = Answering(opened, **options)(images)
    with served(folder, **options) as client:
        assert "/predict" in client.get("/openapi.json").json()["paths"]
        for image, answer in zip(images, expected, strict=True):
            reply = client.post("/predict", content=body_of(image)).json()
            assert (reply["width"], reply["height"]) == image.size
            assert_alike({name: reply[name] for name in answer.values}, answer.values)
            picture = client.post("/predict?png=true", content=body_of(image))
            if answer.image is None:
                assert picture.status_code == 400
            else:
                stored = np.asarray(Image.open(io.BytesIO(picture.content))).astype(int)
                assert np.abs(stored - answer.image).max() <= 1
        pixels = opened.processor(images[0], size={"height": 64, "width": 64}, return_tensors="pt").pixel_values
        with torch.no_grad():
            summary = opened.backbone(pixels).summary[0]
        found = client.post("/features", content=body_of(images[0])).json()["summary"]
        torch.testing.assert_close(torch.tensor(found), summary, rtol=1e-4, atol=1e-4)


@needs_heads
@pytest.mark.parametrize(
    ("model_class", "fields"), [(RadioForImageClassification, {}), (RadioForObjectDetection, TINY_DETECTOR)]
)
def test_outputs_that_overflow_are_status_500(model_class, fields, save_tuned, images, served):
    with served(overflow(save_tuned(model_class, **fields))) as client:
        for path in ("/predict", "/features", "/features?dense=true"):
            reply = client.post(path, content=body_of(images[0]))
            assert (reply.status_code, reply.json()) == (500, {"detail": NOT_FINITE.values["error"]})


def assert_alike(found, expected):
    """Compare plain data, numbers to 1e-4."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == expected or math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-4)


def test_a_zero_shot_model_is_asked_with_words(texts, images, served):
    (expected,) = Answering(open_model(str(texts), device="cpu"), ["cat", "dog"])(images[:1])
    with served(texts) as client:
        reply = client.post("/predict?classes=cat, dog", content=body_of(images[0])).json()
        assert_alike({"classes": reply["classes"]}, expected.values)
        for wrong in ("", "?classes=" + "a" * 300, "?classes=" + ",".join(map(str, range(300)))):
            assert client.post(f"/predict{wrong}", content=body_of(images[0])).status_code == 400


def test_a_backbone_has_features_alone(save_tuned, images, served):
    folder = save_tuned(RadioModel)
    with served(folder) as client:
        assert client.post("/predict", content=body_of(images[0])).status_code == 404
        assert client.get("/", follow_redirects=False).headers["location"] == "/docs"
    refused("threshold", lambda: served(folder, threshold=0.5))
    refused("threshold", lambda: served(save_tuned(RadioForImageClassification), threshold=5.0))


def test_boxes_of_large_images_are_in_their_pixels(save_tuned, images, served, monkeypatch):
    folder = save_tuned(RadioForObjectDetection, **TINY_DETECTOR)
    with served(folder, threshold=0.0) as client:
        whole = client.post("/predict", content=body_of(images[0])).json()
        monkeypatch.setattr(answers, "MOST_PIXELS", 70 * 50 // 4)
        reduced = client.post("/predict", content=body_of(images[0])).json()
    assert (reduced["width"], reduced["height"]) == images[0].size
    largest = [max(max(each["box"]) for each in reply["objects"]) for reply in (whole, reduced)]
    assert largest[1] > 0.6 * largest[0]
