import pytest
import torch
from sklearn.metrics import mean_absolute_percentage_error, root_mean_squared_error
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from modeling_radio.metrics.dense import (
    ConfusionMatrix,
    DepthScore,
    class_sums,
    pixel_accuracy_of_sums,
)


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


def test_errors_of_depth_are_scikit_learns():
    generator, score = torch.Generator().manual_seed(0), DepthScore()
    true = torch.rand(2, 3, 7, 9, generator=generator) + 0.5
    predicted = true * (0.6 + 0.8 * torch.rand(true.shape, generator=generator))
    true[torch.rand(true.shape, generator=generator) < 0.2] = 0
    for pair in zip(predicted, true, strict=True):
        score.update(*pair)
    given = true[true > 0], predicted[true > 0]
    expected = {"abs_rel": mean_absolute_percentage_error(*given), "rmse": root_mean_squared_error(*given)}
    assert {name: score.compute()[name].item() for name in expected} == pytest.approx(expected, abs=1e-6)
