"""Scores from sums over images are those of torchmetrics and COCO, also of images drawn several times."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.detection import MeanAveragePrecision

from modeling_radio.metrics.bootstrap import bootstrap_intervals
from modeling_radio.metrics.dense import ConfusionMatrix, DepthScore
from modeling_radio.metrics.tallies import ClassTally, DepthTally, LabelTally, NumberTally, ObjectTally, PixelTally


DRAWN = torch.tensor([0, 0, 1, 3, 3, 3, 5, 6, 7, 9])
"""Images of a draw: some several times, some never."""


def weights():
    """A draw of every image once, and `DRAWN`."""
    return torch.stack([torch.ones(10), DRAWN.bincount(minlength=10)]).double()


def expect(found, metrics, predictions, references):
    """Compare both draws with metrics that are updated with the images drawn."""
    for draw, images in enumerate((torch.arange(10), DRAWN)):
        for name, metric in metrics.items():
            metric.reset()
            metric.update(predictions[images], references[images])
            assert float(found[name][draw]) == pytest.approx(float(metric.compute()), abs=1e-6), (name, draw)


def test_classes():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 5, generator=generator), torch.randint(4, (10,), generator=generator)
    tally = ClassTally(5, temperature=2.0)
    tally.add(logits[:6], labels[:6])
    tally.add(logits[6:], labels[6:])
    options = {"num_classes": 5}
    metrics = {
        "accuracy": MulticlassAccuracy(average="micro", **options),
        "f1": MulticlassF1Score(average="macro", **options),
        "calibration_error": MulticlassCalibrationError(n_bins=15, **options),
    }
    expect(tally.compute(weights()), metrics, (logits / 2).softmax(1), labels)
    for draw, images in enumerate((torch.arange(10), DRAWN)):
        expected = balanced_accuracy_score(labels[images], logits[images].argmax(1))
        assert float(tally.compute(weights())["balanced_accuracy"][draw]) == pytest.approx(expected)
    counts = labels.bincount(minlength=5)
    assert counts[4] == 0  # of no image, but of some answers
    assert (logits.argmax(1) == 4).any()
    assert tally.by_class()["images"].tolist() == counts.tolist()
    assert tally.by_class()["f1"].isnan().tolist() == (counts == 0).tolist()
    assert tally.constant()["accuracy"] == pytest.approx(float(counts.max() / 10))


def test_several_classes():
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(10, 4, generator=generator) * 4).round() / 4  # with ties
    truths = (torch.rand(10, 4, generator=generator) < 0.4).long()
    truths[:, 3] = 0
    tally = LabelTally()
    tally.add(scores, truths)
    found = tally.compute(weights())
    expect(found, {"calibration_error": BinaryCalibrationError(n_bins=15)}, scores, truths)
    for draw, images in enumerate((torch.arange(10), DRAWN)):
        occurs = truths[images].bool().any(0)
        options = {"num_labels": 4, "average": None}
        each = MultilabelAveragePrecision(**options)(scores[images], truths[images])[occurs]
        assert float(found["mean_average_precision"][draw]) == pytest.approx(float(each.mean()), abs=1e-6)
        each = MultilabelF1Score(**options)(scores[images], truths[images])[occurs]
        assert float(found["f1"][draw]) == pytest.approx(float(each.mean()), abs=1e-6)
    assert tally.by_class()["average_precision"].isnan().tolist() == [False, False, False, True]
    assert tally.constant()["mean_average_precision"] == pytest.approx(float(truths[:, :3].float().mean()))


def test_numbers_and_maps():
    generator = torch.Generator().manual_seed(0)
    numbers, pixels, depths = NumberTally(), PixelTally(3), DepthTally()
    truth = torch.rand(10, 4, 6, generator=generator) + 0.5
    predicted = truth * (1 + 0.4 * torch.rand(10, 4, 6, generator=generator))
    truth[:, 0] = 0
    numbers.add(predicted[:, 1, 0], truth[:, 1, 0])
    depths.add(predicted, truth)
    ids, own = torch.randint(2, (10, 4, 6), generator=generator), torch.randint(3, (10, 4, 6), generator=generator)
    ids[:, 0] = 255
    pixels.add(own, ids)
    for tally, score, images in ((pixels, ConfusionMatrix(3), (own, ids)), (depths, DepthScore(), (predicted, truth))):
        found = tally.compute(weights())
        for draw, chosen in enumerate((torch.arange(10), DRAWN)):
            score.reset()
            score.update(images[0][chosen], images[1][chosen])
            expected = {name: float(value) for name, value in score.compute().items()}
            assert {name: float(values[draw]) for name, values in found.items()} == pytest.approx(expected)
    errors = (predicted - truth)[:, 1, 0].abs()
    assert numbers.compute(weights())["mean_absolute_error"].tolist() == pytest.approx(
        [float(errors.mean()), float(errors[DRAWN].mean())]
    )
    frequent = int((ids == 1).sum() > (ids == 0).sum())
    constant = ConfusionMatrix(3)
    constant.update(torch.full_like(ids, frequent), ids)
    assert pixels.constant() == pytest.approx({name: float(value) for name, value in constant.compute().items()})
    assert depths.mean_depth == pytest.approx(float(truth[truth > 0].mean()))


def random_boxes(count, generator):
    corner, size = torch.rand(count, 2, generator=generator) * 60, torch.rand(count, 2, generator=generator) * 40 + 4
    return torch.cat([corner, corner + size], dim=1)


def test_an_interval_contains_its_number():
    """Noise raises these scores, so that of objects is lower than those of almost all resamples."""
    generator, objects, labels, sure = torch.Generator().manual_seed(0), ObjectTally(60), LabelTally(), ClassTally(10)
    for _ in range(100):
        boxes, true = random_boxes(3, generator), torch.randint(60, (3,), generator=generator)
        found = {"boxes": boxes.repeat(30, 1), "labels": torch.randint(60, (90,), generator=generator)}
        found["scores"] = torch.rand(90, generator=generator)
        objects.add([found], [{"boxes": boxes, "labels": true}])
    labels.add(torch.rand(100, 20, generator=generator), torch.rand(100, 20, generator=generator) < 0.05)
    logits = 2 * torch.randn(300, 10, generator=generator)
    sure.add(logits, logits.softmax(1).multinomial(1, generator=generator).flatten())
    drawn = []
    for tally in (sure, labels, objects):
        drawn.clear()
        intervals = bootstrap_intervals(
            lambda weights, tally=tally: drawn.append(tally.compute(weights)) or drawn[-1],
            tally.num_images,
            num_resamples=100,
            limits=tally.limits,
        )
        numbers = tally.once()
        for name, number in numbers.items():
            assert 0 <= intervals[name].low <= number <= intervals[name].high <= 1, name
    resamples = torch.cat([each["map"] for each in drawn])
    assert resamples.quantile(0.025) > numbers["map"]


def test_objects_are_scored_as_coco_scores_them():
    """With boxes that overlap several objects, equal scores, more than 100 of a class, and images without objects."""
    generator, images = torch.Generator().manual_seed(0), []
    tally = ObjectTally(3)
    for number in range(10):
        truth = random_boxes(number % 5, generator)
        true = torch.randint(2, (len(truth),), generator=generator)
        near = truth.repeat(3, 1) + 6 * torch.randn(3 * len(truth), 4, generator=generator)
        boxes = torch.cat([near, random_boxes(130 if number == 4 else 6, generator)])
        boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        others = torch.randint(1 if number == 4 else 3, (len(boxes) - len(near),), generator=generator)
        classes = torch.cat([true.repeat(3), others])
        scores = (torch.rand(len(boxes), generator=generator) * 50).round() / 50
        predicted = {"boxes": boxes, "labels": classes, "scores": scores}
        images.append((predicted, {"boxes": truth, "labels": true}))
        tally.add([images[-1][0]], [images[-1][1]])
    found = tally.compute(weights())
    for draw, chosen in enumerate((range(10), DRAWN.tolist())):
        metric = MeanAveragePrecision(class_metrics=True)
        metric.update([images[index][0] for index in chosen], [images[index][1] for index in chosen])
        expected = metric.compute()
        for name in ("map", "map_50", "map_75", "mar_100"):
            assert float(found[name][draw]) == pytest.approx(float(expected[name]), abs=1e-5), (name, draw)
        if draw == 0:
            each = tally.by_class()["average_precision"]
            assert each[:2].tolist() == pytest.approx(expected["map_per_class"][:2].tolist(), abs=1e-5)
            assert each[2].isnan()
