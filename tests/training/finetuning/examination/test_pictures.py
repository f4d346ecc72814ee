"""What the pictures show is what was counted."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from training.finetuning.examination.evidence import rank_classes
from training.finetuning.examination.pictures import (
    MAX_CLASSES,
    average_precision,
    describe_worst,
    draw_confusion,
    draw_precision_recall,
    precision_and_recall,
)


def test_confusions_are_shares_of_each_true_class():
    (ax,) = draw_confusion(torch.tensor([[3, 1], [0, 0]]), ("cat", "dog")).axes
    assert ax.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog"]
    assert {text.get_text() for text in ax.texts} == {"0.75", "0.25", "0.00"}


def test_of_many_classes_the_worst_are_shown():
    confusion = torch.eye(MAX_CLASSES + 9, dtype=torch.long) * 9
    confusion[4, 5], confusion[4, 4] = 9, 0
    names = [f"class {number}" for number in range(len(confusion))]
    (ax,) = draw_confusion(confusion, names).axes
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(shown) == MAX_CLASSES
    assert "class 4" in shown
    assert "the 30 least often right of 39" in ax.get_title()


def test_average_precision_is_that_of_scikit_learn():
    truths, scores = torch.rand(300, 1) < 0.3, torch.rand(300, 1)
    found = average_precision(*precision_and_recall(rank_classes(scores, truths), 0))
    assert found == pytest.approx(average_precision_score(truths[:, 0], scores[:, 0]), abs=1e-6)


def test_curves_have_the_names_of_their_classes():
    truths = torch.tensor([[1, 0, 0], [0, 1, 0]] * 3)
    (ax,) = draw_precision_recall(rank_classes(truths * 0.5 + 0.1, truths), ("cat", "dog", "emu")).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cat, 1.00", "dog, 1.00"]


def test_worst_images_come_first():
    assert describe_worst(torch.tensor([0.1, 0.9, 0.5]), 2) == ([1, 2], "largest errors: 0.9, 0.5 (median 0.5)")
