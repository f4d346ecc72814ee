"""Weights of classes from how often they occur, or as they were given."""

import pytest
import torch

from training.finetuning.tasks.class_weights import balanced_weights, choose_weights


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
