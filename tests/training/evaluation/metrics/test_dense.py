import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from modeling_radio.training.evaluation.metrics.dense import (
    IGNORE_INDEX,
    ConfusionMatrix,
    DepthScore,
    class_sums,
    depth_errors,
    depth_sums,
    mean_iou_of_sums,
    pixel_accuracy_of_sums,
)


@pytest.mark.parametrize(
    ("predictions", "masks", "num_classes", "iou"),
    [
        ([0, 1, 1, 1], [0, 0, 1, 1], 2, (1 / 2 + 2 / 3) / 2),
        ([0, 0], [0, 0], 3, 1),  # absent classes are left out
        ([0, 2], [0, 0], 3, (1 / 2 + 0) / 2),  # a wrong guess of one is not
        ([0, 1, 1], [0, 1, IGNORE_INDEX], 2, 1),
    ],
)
def test_mean_iou_by_hand(predictions, masks, num_classes, iou):
    sums = class_sums(torch.tensor(predictions), torch.tensor(masks), num_classes)
    assert mean_iou_of_sums(sums).item() == pytest.approx(iou)
    assert mean_iou_of_sums(2 * sums.expand(3, -1)).tolist() == pytest.approx([iou] * 3)


@pytest.mark.parametrize("ignore_index", [255, 0, 4, -100], ids=["beyond", "a class", "an absent class", "negative"])
def test_batches_add_up_to_torchmetrics(ignore_index):
    options = {"num_classes": 5, "ignore_index": ignore_index}
    expected = {
        "mean_iou": MulticlassJaccardIndex(average="macro", **options),
        "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
    }
    confusion = ConfusionMatrix(5, ignore_index)
    confusion.update(torch.tensor([1]), torch.tensor([3]))
    confusion.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        predictions, masks = torch.tensor([0, 1, 3])[torch.randint(3, (2, 4, 9, 7), generator=generator)]
        masks[torch.rand(masks.shape, generator=generator) < 0.2] = ignore_index
        confusion.update(predictions, masks)
        for metric in expected.values():
            metric.update(predictions, masks)
    found = confusion.compute()
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert 0 < found[name] < 1
        assert found[name].item() == pytest.approx(metric.compute().item(), abs=1e-6), name  # float32 in torchmetrics
    if ignore_index == 255:
        sums = class_sums(predictions, masks, 5)
        last = MulticlassAccuracy(average="micro", **options)(predictions, masks)
        assert pixel_accuracy_of_sums(sums).item() == pytest.approx(last.item(), abs=1e-6)


def test_counts_are_of_true_rows_and_predicted_columns():
    confusion = ConfusionMatrix(2)
    assert confusion.compute()["mean_iou"].isnan()
    assert confusion.compute()["pixel_accuracy"] == 0  # as of torchmetrics
    confusion.update(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]))
    assert confusion.counts.tolist() == [[1, 2], [0, 0]]


def test_depth_errors_are_of_known_pixels_alone():
    true = torch.tensor([[[1.0, 2.0, 0.0, 4.0]]])
    predicted = torch.tensor([[[1.1, 3.0, 9.0, 4.0]]])
    found = depth_errors(depth_sums(predicted, true))
    assert found["abs_rel"] == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert found["rmse"] == pytest.approx(((0.01 + 1) / 3) ** 0.5)
    assert found["delta1"] == pytest.approx(2 / 3)


def test_batches_of_depth_add_up():
    pairs = torch.rand(2, 2, 2, 3, 4) + 1
    score = DepthScore()
    for predicted, true in pairs.transpose(0, 1):
        score.update(predicted, true)
    torch.testing.assert_close(score.compute(), depth_errors(depth_sums(*pairs)))
    score.reset()
    assert score.compute()["rmse"].isnan()
