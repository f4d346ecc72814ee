import pytest
import torch

from training.evaluation.metrics.feature_cosine.cosines import centered_cosine, mean_cosine


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
