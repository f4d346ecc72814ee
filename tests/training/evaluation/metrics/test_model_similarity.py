import pytest
import torch

from training.evaluation.metrics.model_similarity import canonical_correlation, linear_fidelity


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
