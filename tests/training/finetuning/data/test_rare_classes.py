"""Images of rare classes are drawn as often as the rule says, and classes weighted by how often they occur."""

import pytest
import torch
from datasets import ClassLabel, load_from_disk
from tiny_tuning import build_task, save_labels

from training.finetuning.data import (
    balanced_weights,
    choose_weights,
    draw_images,
    epoch_length,
    image_weights,
)
from training.finetuning.tasks.base import build_examples
from training.finetuning.tasks.classification import ClassificationTask


def test_balanced_shows_every_class_equally_often():
    classes = [[0]] * 8 + [[1]] * 2
    weights = image_weights("balanced", classes, 3, 0.1)
    assert weights.tolist() == [0.625] * 8 + [2.5] * 2  # both sum to 5
    drawn = draw_images(weights, torch.Generator().manual_seed(0))
    assert len(drawn) == 10
    assert 4 <= (drawn >= 8).sum() <= 6  # each of the two images twice or three times


def test_repeat_factors_are_those_of_lvis():
    classes = [[0]] * 96 + [[0, 1]] * 3 + [[]]
    weights = image_weights("repeat-factor", classes, 2, 0.12)
    assert weights.tolist() == pytest.approx([1.0] * 96 + [2.0] * 3 + [1.0])  # sqrt(0.12 / 0.03)
    assert epoch_length(weights) == 103


def test_draws_are_the_weights_on_average_and_never_further_off_than_rounding():
    weights = torch.tensor([0.5, 1.0, 2.25, 0.25])
    counts = torch.stack(
        [draw_images(weights, torch.Generator().manual_seed(seed)).bincount(minlength=4) for seed in range(400)]
    )
    assert (counts >= weights.floor()).all()
    assert (counts <= weights.ceil()).all()
    torch.testing.assert_close(counts.double().mean(0), weights.double(), atol=0.1, rtol=0)


def test_balanced_is_for_one_class_an_image():
    with pytest.raises(ValueError, match="one has 2: choose 'repeat-factor'"):
        image_weights("balanced", [[0], [0, 1]], 2, 0.1)


def examples(tmp_path, **options):
    feature = ClassLabel(names=["cat", "dog"])
    rows = load_from_disk(save_labels(tmp_path / "rows", feature, [0] * 8 + [1] * 2))
    rows = rows.rename_column("label", "target")
    task = build_task(ClassificationTask, "image-classification", ("cat", "dog"), rows, **options)
    return build_examples(task, rows, "training image", is_training=True)


def test_examples_draw_anew_each_epoch_and_the_same_for_one(tmp_path):
    sampled = examples(tmp_path, sampler="balanced")
    assert len(sampled) == 10
    first = [sampled.row_of(index) for index in range(10)]
    assert 4 <= sum(row >= 8 for row in first) <= 6
    assert [int(sampled[index]["labels"]) for index in range(10)] == [int(row >= 8) for row in first]
    sampled.epoch = 1
    assert [sampled.row_of(index) for index in range(10)] != first
    sampled.epoch = 0
    assert [sampled.row_of(index) for index in range(10)] == first


def test_without_a_sampler_each_row_is_shown_once(tmp_path):
    plain = examples(tmp_path)
    assert [plain.row_of(index) for index in range(10)] == list(range(10))


def test_balanced_weights():
    assert balanced_weights(torch.tensor([30, 10, 0])) == pytest.approx([40 / 60, 2.0, 1.0])


def test_counting_is_for_balanced_weights_only():
    counts = torch.tensor([30, 10])
    assert choose_weights("balanced", ("a", "b"), lambda: counts) == balanced_weights(counts)
    assert choose_weights((1.0, 2.0), ("a", "b"), lambda: pytest.fail("nothing needs to be counted")) == [1.0, 2.0]


def test_each_class_has_a_weight():
    with pytest.raises(
        ValueError, match=r"`class_weights` must have one number for each of the 2 classes \(a, b\), got 3"
    ):
        choose_weights((1.0, 2.0, 3.0), ("a", "b"), lambda: torch.ones(2))
