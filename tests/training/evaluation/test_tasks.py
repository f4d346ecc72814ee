import pytest
import torch
from torch.nn import functional as F

from training.evaluation import tasks
from training.evaluation.extractors import Features, pixel_extractor
from training.evaluation.tasks import (
    measure_adaptor_fidelity,
    measure_knn,
    measure_segmentation_probe,
    measure_text_zero_shot,
    measure_zero_shot,
)


def _scores(measurements) -> dict[str, float]:
    return {f"{found.task} {found.metric}": found.value for found in measurements}


def test_knn_and_probe_of_pixels_that_tell_the_class(data):
    assert _scores(measure_knn("pixels", pixel_extractor(8), data)) == {
        "knn accuracy": 1.0,
        "knn accuracy, mean features": 1.0,
    }
    (probe,) = measure_segmentation_probe("pixels", pixel_extractor(8), data, seed=3)
    assert (probe.model, probe.metric, probe.dataset, probe.seed) == ("pixels", "mIoU", "toy scenes", 3)
    assert probe.value > 0.99


def test_a_model_without_summary_has_only_the_mean_of_its_features(data):
    measurements = measure_knn("dense", lambda pixels: Features(None, F.avg_pool2d(pixels, 8)), data)
    assert _scores(measurements) == {"knn accuracy, mean features": 1.0}


def test_fidelity_skips_what_was_not_measured(data):
    reference = data.extract(lambda pixels: Features(None, F.avg_pool2d(pixels, 8)), data.unlabeled, "")
    measurements = measure_adaptor_fidelity(
        "adaptor", lambda pixels: Features(None, F.avg_pool2d(pixels, 8)), reference, data
    )
    assert _scores(measurements) == {
        "adaptor_fidelity features": pytest.approx(1.0),
        "adaptor_fidelity centered features": pytest.approx(1.0),
    }


def test_zero_shot_goes_through_the_names_of_the_classifiers_classes(data, monkeypatch):
    class ColorWords:
        """Knows "red" and "green"; every other word means neither."""

        def encode(self, texts):
            return torch.tensor([[float("red" in text), float("green" in text)] for text in texts]) + 0.01

    def classify(summary: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(summary), 3)
        logits[:, 1], logits[:, 2] = 20 * summary[:, 0], 20 * summary[:, 1]
        return logits

    monkeypatch.setattr(tasks, "SentenceEncoder", ColorWords)
    monkeypatch.setattr(tasks, "imagenet_class_names", lambda: ["a desk", "a red fox", "a green mamba"])
    monkeypatch.setattr(tasks, "NUM_CONSE_CLASSES", 2)
    extractor = lambda pixels: Features(pixels.mean((2, 3)), pixels)  # noqa: E731
    (found,) = measure_zero_shot("teacher", extractor, classify, data)
    assert found.value == 1.0
    with pytest.raises(ValueError, match="`zero_shot` needs a summary, which 'dense' does not have"):
        measure_zero_shot("dense", lambda pixels: Features(None, pixels), classify, data)


def test_zero_shot_by_texts_takes_the_class_of_the_nearest_text(data):
    def mean_color(pixels):
        return Features(pixels.mean(dim=(2, 3)), pixels)

    red_and_green = torch.eye(3)[:2]
    (found,) = measure_text_zero_shot("adaptor x", mean_color, red_and_green, data, seed=1)
    assert (found.model, found.task, found.metric, found.dataset) == (
        "adaptor x",
        "zero_shot",
        "accuracy",
        "toy objects",
    )
    assert (found.value, found.seed) == (1.0, 1)
    assert measure_text_zero_shot("x", mean_color, red_and_green.flip(0), data)[0].value == 0.0


def test_zero_shot_by_texts_needs_a_summary(data):
    with pytest.raises(ValueError, match="`zero_shot` needs a summary, which 'dense' does not have"):
        measure_text_zero_shot("dense", lambda pixels: Features(None, pixels), torch.eye(2), data)
