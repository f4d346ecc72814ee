"""Cosines and correlations of features that belong together."""

import pytest
import torch

from training.evaluation.metrics.fidelity import canonical_correlation, centered_cosine, linear_fidelity, mean_cosine


def test_hand_computed():
    features, reference = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert mean_cosine(features, reference) == pytest.approx((1 + 0.5**0.5) / 2)
    # about (1, 1.5): (0, -1.5) with (1, -1.5), and (0, -.5) with (-1, 1.5)
    expected = (1.5 / 3.25**0.5 - 1.5 / 3.25**0.5) / 2
    assert centered_cosine(features, reference) == pytest.approx(expected, abs=1e-6)


def test_a_constant_answer_scores_zero_when_centered():
    reference = torch.randn(50, 8) + 5
    constant = reference.mean(0).expand(50, 8)
    assert mean_cosine(constant, reference) > 0.9
    assert centered_cosine(constant, reference) == pytest.approx(0, abs=1e-6)


def test_maps_count_every_position():
    features, reference = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = [maps.movedim(1, -1).flatten(0, 2) for maps in (features, reference)]
    assert mean_cosine(features, reference) == pytest.approx(mean_cosine(*rows))
    assert centered_cosine(features, reference) == pytest.approx(centered_cosine(*rows), abs=1e-6)


def test_a_change_of_basis_changes_nothing():
    features = torch.randn(600, 8)
    other = features @ torch.randn(8, 8) + 3
    halves = (features[:300], other[:300]), (features[300:], other[300:])
    assert canonical_correlation(*halves) == pytest.approx(1.0, abs=1e-3)
    assert linear_fidelity(*halves) == pytest.approx(1.0, abs=1e-3)


def test_what_has_nothing_in_common_is_not_found_alike():
    one, other = torch.randn(2000, 6), torch.randn(2000, 4)
    halves = (one[:1000], other[:1000]), (one[1000:], other[1000:])
    assert abs(canonical_correlation(*halves)) < 0.1
    assert abs(linear_fidelity(*halves)) < 0.05


def test_a_part_explains_less_than_the_whole():
    features = torch.randn(2000, 4)
    part = features[:, :2]
    train, test = (features[:1000], part[:1000]), (features[1000:], part[1000:])
    assert linear_fidelity(train, test) == pytest.approx(1.0, abs=1e-3)
    assert linear_fidelity(train[::-1], test[::-1]) == pytest.approx(0.5, abs=0.05)
