import pytest
import torch

from training.evaluation.metrics.feature_statistics import channel_statistics


def test_one_channel_far_off_and_one_far_wider_are_seen():
    torch.manual_seed(0)
    tokens = torch.randn(20000, 8)
    even = channel_statistics(tokens)
    assert even["largest mean"] < 0.05
    assert even["largest deviation"] == pytest.approx(1, abs=0.05)
    assert even["variance of the widest"] == pytest.approx(1 / 8, abs=0.01)
    assert even["excess kurtosis"] == pytest.approx(0, abs=0.1)
    tokens[:, 3] += 20
    tokens[:, 5] *= 10
    uneven = channel_statistics(tokens)
    assert uneven["largest mean"] == pytest.approx(20 / ((400 + 7 + 100) / 8) ** 0.5, rel=0.02)
    assert uneven["largest deviation"] == pytest.approx(10, rel=0.05)
    assert uneven["variance of the widest"] == pytest.approx(100 / 107, rel=0.02)


def test_rare_large_values_are_heavy_tails():
    torch.manual_seed(0)
    tokens = torch.randn(20000, 4)
    tokens[::1000] *= 30
    assert channel_statistics(tokens)["excess kurtosis"] > 50
    assert channel_statistics(torch.ones(3, 2))["largest deviation"] == 0
