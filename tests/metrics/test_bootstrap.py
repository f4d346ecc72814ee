import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from modeling_radio.metrics.bootstrap import bootstrap_interval, mean_interval


def test_intervals_are_those_of_scipy():
    scores = torch.rand(200)
    ours = mean_interval(scores, num_resamples=4000)
    theirs = bootstrap((scores.numpy(),), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert ours == mean_interval(scores, num_resamples=4000)
    assert ours != mean_interval(scores, num_resamples=4000, seed=1)


def test_images_of_one_source_count_as_one():
    sources = torch.arange(20).repeat_interleave(10)
    scores = (sources % 2).float()
    alone, grouped = mean_interval(scores), mean_interval(scores, groups=sources)
    of_sources = mean_interval((torch.arange(20) % 2).float())
    assert grouped == pytest.approx(of_sources)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_pairs_count_as_often_as_both_of_their_images():
    seen = []
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    bootstrap_interval(lambda weights: seen.append(weights) or weights.sum(1), 3, groups=pairs)
    rows = {tuple(row) for row in torch.cat(seen).tolist()}
    assert rows == {(1, 1, 1), (2, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, 0)}


def test_without_two_sources_there_is_no_interval():
    assert mean_interval(torch.tensor([1.0])) is None
    assert mean_interval(torch.ones(5), groups=torch.zeros(5, dtype=torch.long)) is None


def test_resamples_without_a_value_are_left_out():
    def share_of_first(weights):
        return weights[:, 0] / weights[:, 0]  # NaN where the first was not drawn

    assert bootstrap_interval(share_of_first, 3) == (1.0, 1.0)
    assert bootstrap_interval(lambda weights: weights[:, 0] * float("nan"), 3) is None
