"""Running statistics of batch norms over steps, ranks and the moving average."""

import torch
from torch import nn

from modeling_radio.training.student.ema import MovingAverage
from modeling_radio.training.student.running_statistics import RunningStatistics, running_statistics


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_a_skipped_step_leaves_them_as_they_were():
    model = build()
    statistics = RunningStatistics(model, None)
    for is_skipped in (True, False):
        before = [each.clone() for each in running_statistics(model)]
        statistics.begin_step()
        model(torch.rand(2, 3, 4, 4))
        statistics.end_step(is_skipped=is_skipped)
        assert all(map(torch.equal, before, running_statistics(model))) == is_skipped


def test_they_are_averaged_over_ranks():
    model = build()
    statistics = RunningStatistics(model, lambda own: (own + 3) / 2)
    before = [each.clone() for each in running_statistics(model)]
    statistics.begin_step()
    statistics.end_step(is_skipped=False)
    for now, then in zip(running_statistics(model), before, strict=True):
        assert torch.equal(now, (then + 3) / 2)


def test_a_model_without_batch_norm_has_none():
    statistics = RunningStatistics(nn.Linear(2, 2), lambda own: own / 0)
    statistics.begin_step()
    statistics.end_step(is_skipped=False)


def test_the_moving_average_averages_them():
    model = build()
    average = MovingAverage(model, decay=0.5)
    average.update_parameters(model)
    for buffer in running_statistics(model):
        buffer.add_(1)
    expected = [each - 0.5 for each in running_statistics(model)]
    average.n_averaged.fill_(100)  # the final decay
    average.update_parameters(model)
    for found, wanted in zip(running_statistics(average.module), expected, strict=True):
        torch.testing.assert_close(found, wanted)
