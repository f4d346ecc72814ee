"""Labels of whole images: one class, several, or a measured number."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tiny_tuning import build_task, picture

from training.finetuning.tasks.classification import ClassificationTask, MultiLabelTask, RegressionTask


def label_rows(*labels):
    return Dataset.from_dict({"target": list(labels)})


def build(task_class, **options):
    return build_task(task_class, "image-classification", **options)


def test_one_label_is_an_id():
    task = build(ClassificationTask)
    sample = task.read({"image": picture(), "target": 2}, "image 0")
    assert task.labels(sample).item() == 2
    assert task.config_fields()["problem_type"] == "single_label_classification"
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 0, 0]])
    predictions, references = task.compare(SimpleNamespace(logits=logits), {"labels": torch.tensor([0, 1, 2])})
    score = task.build_score()
    score.update(predictions, references)
    result = {name: float(value) for name, value in score.compute().items()}
    assert result == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 2 / 3, "f1": (2 / 3 + 1 + 0) / 3})


def test_class_weights_reach_the_configuration():
    task = build(ClassificationTask, class_weights=(1.0, 2.0, 3.0))
    assert task.config_fields()["class_weights"] == [1.0, 2.0, 3.0]
    task = build(ClassificationTask, train=label_rows(0, 0, 0, 1), class_weights="balanced")
    assert task.config_fields()["class_weights"] == pytest.approx([4 / 6, 2.0, 1.0])


def build_multi_label(names=("a", "b", "c"), train=None, **options):
    return build(MultiLabelTask, names=names, train=train or label_rows([0]), **options)


@pytest.fixture
def multi_label():
    return build_multi_label()


def test_several_labels_become_ones(multi_label):
    assert multi_label.config_fields()["problem_type"] == "multi_label_classification"
    for classes, expected in (([0, 2], [1, 0, 1]), ([], [0, 0, 0])):
        sample = multi_label.read({"image": picture(), "target": classes}, "image 0")
        assert multi_label.labels(sample).tolist() == expected


@pytest.mark.filterwarnings("ignore:No positive samples:UserWarning")
def test_mean_average_precision_by_hand(multi_label):
    # Class a is found above the others, b's second image is a miss, and c occurs nowhere.
    logits = torch.tensor([[0.9, 2.0, -3.0], [0.1, -1.0, -3.0], [0.2, 1.0, -3.0]])  # all of a would pass for shares
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    predictions, references = multi_label.compare(SimpleNamespace(logits=logits), {"labels": labels})
    torch.testing.assert_close(predictions, logits.sigmoid())
    score = multi_label.build_score()
    for _ in range(2):
        score.update(predictions[:2], references[:2])
        score.update(predictions[2:], references[2:])
        result = score.compute()
        assert result["mean_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
        assert result["f1"] == pytest.approx((2 / 4 + 2 / 4) / 2)
        score.reset()


def test_average_precision_of_one_class():
    task = build_multi_label(("a",))
    predictions, references = task.compare(
        SimpleNamespace(logits=torch.tensor([[2.0], [1.0], [-1.0]])), {"labels": torch.tensor([[0.0], [1], [0]])}
    )
    score = task.build_score()
    score.update(predictions, references)
    assert {name: float(value) for name, value in score.compute().items()} == pytest.approx(
        {"mean_average_precision": 1 / 2, "f1": 2 / 3}
    )


def test_validation_images_need_a_class():
    with pytest.raises(
        ValueError, match=r"No validation image of 'data' has a class, .* more images with `validation_s"
    ):
        build_multi_label(train=label_rows([], []))


def test_balanced_weights_are_not_for_several_labels():
    task = build_multi_label(class_weights="balanced")
    with pytest.raises(ValueError, match=r"`class_weights` 'balanced' is for one class an image; .* each of the 3"):
        task.config_fields()
    task = build_multi_label(class_weights=(1.0, 2.0, 3.0))
    assert task.config_fields()["class_weights"] == [1.0, 2.0, 3.0]


def test_picture_of_several_labels_shows_all_that_are_predicted():
    task = build_multi_label(("a", "b", "c", "d", "e"))
    truth, predicted = Figure().subplots(1, 2)
    reference = torch.tensor([1, 0, 0, 0, 1])
    task.draw_truth(truth, torch.zeros(4, 4, 3), reference)
    task.draw_prediction(predicted, torch.zeros(4, 4, 3), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]), reference)
    assert truth.get_title() == "a, e"
    assert [label.get_text() for label in predicted.get_yticklabels()] == ["d", "c", "b", "a"]
    colors = [bar.get_facecolor()[:2] for bar in predicted.patches]
    assert len(set(colors[:3])) == 1
    assert colors[3] != colors[0]  # a is right, the others are not
    task.draw_truth(truth, torch.zeros(4, 4, 3), torch.zeros(5))
    assert truth.get_title() == "no class"


def test_regression():
    task = build(RegressionTask, names=())
    fields = task.config_fields()
    assert (fields["problem_type"], fields["id2label"]) == ("regression", {0: "value"})
    sample = task.read({"image": picture(), "target": 2.5}, "image 0")
    labels = torch.stack([task.labels(sample), torch.tensor(0.0)])
    predictions, references = task.compare(SimpleNamespace(logits=torch.tensor([[2.0], [1.0]])), {"labels": labels})
    score = task.build_score()
    score.update(predictions, references)
    assert score.compute()["mean_absolute_error"] == pytest.approx((0.5 + 1.0) / 2)
    task = build(RegressionTask, class_weights="balanced")
    with pytest.raises(ValueError, match="`class_weights` is for classes, but the labels are measured numbers"):
        task.config_fields()
