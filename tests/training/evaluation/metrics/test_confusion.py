import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from training.evaluation.metrics.dense import IGNORE_INDEX, ConfusionMatrix, mean_iou


def test_mean_iou_by_hand():
    masks = torch.tensor([0, 0, 1, 1])
    predictions = torch.tensor([0, 1, 1, 1])
    # class 0: 1 of 2, class 1: 2 of 3
    assert mean_iou(predictions, masks, 2) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_an_absent_class_is_left_out_and_a_wrong_guess_is_not():
    masks = torch.tensor([0, 0])
    assert mean_iou(torch.tensor([0, 0]), masks, 3) == 1.0
    assert mean_iou(torch.tensor([0, 2]), masks, 3) == pytest.approx((1 / 2 + 0) / 2)


def test_ignored_pixels_do_not_count():
    masks = torch.tensor([0, 1, IGNORE_INDEX])
    assert mean_iou(torch.tensor([0, 1, 1]), masks, 2) == 1.0


NUM_CLASSES = 5


def maps(seed, ignore_index):
    """Predicted and true maps of three of five classes, with some pixels of the ignored id."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([0, 1, 3])
    predictions, references = present[torch.randint(3, (2, 4, 9, 7), generator=generator)]
    references[torch.rand(references.shape, generator=generator) < 0.2] = ignore_index
    return predictions, references


@pytest.mark.parametrize("ignore_index", [255, 0, 4, -100], ids=["beyond", "a class", "an absent class", "negative"])
def test_batches_add_up_to_what_torchmetrics_gives(ignore_index):
    options = {"num_classes": NUM_CLASSES, "ignore_index": ignore_index}
    expected = {
        "mean_iou": MulticlassJaccardIndex(average="macro", **options),
        "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
    }
    confusion = ConfusionMatrix(NUM_CLASSES, ignore_index)
    for seed in range(3):
        predictions, references = maps(seed, ignore_index)
        confusion.update(predictions, references)
        for metric in expected.values():
            metric.update(predictions, references)
    found = confusion.compute()
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert 0 < found[name] < 1
        assert found[name].item() == pytest.approx(metric.compute().item(), abs=1e-6), name  # float32 in torchmetrics


def test_counts_are_of_true_rows_and_predicted_columns():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]))
    assert confusion.counts.tolist() == [[1, 2], [0, 0]]


def test_reset_forgets_all_pixels():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([0, 1]), torch.tensor([1, 0]))
    confusion.reset()
    found = confusion.compute()
    assert math.isnan(found["mean_iou"])
    assert found["pixel_accuracy"] == 0  # as of torchmetrics
    confusion.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert confusion.compute() == {"mean_iou": 1, "pixel_accuracy": 1}
