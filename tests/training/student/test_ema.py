import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from modeling_radio.training.student.ema import MovingAverage, ema_decay, running_statistics


def test_decay_rises_to_its_value() -> None:
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(10_000, 0.99) == 0.99
    decays = [ema_decay(step, 0.9) for step in range(200)]
    assert decays == sorted(decays)


def test_it_is_pytorchs_average_bit_for_bit_in_one_call_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    calls, lerp = [], torch._foreach_lerp_
    ours = MovingAverage(model, 0.9)

    def recorded(averages, current, weight):
        calls.append(len(averages))
        statistics = (model[1].running_mean, model[1].running_var)
        expected = model.parameters() if len(current) == 6 else statistics
        assert all(a is b for a, b in zip(current, expected, strict=True))  # no copies
        lerp(averages, current, weight)

    theirs = AveragedModel(model, avg_fn=lambda old, new, n: torch.lerp(old, new, 1 - ema_decay(int(n), 0.9)))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_lerp_", recorded)
        for _ in range(4):
            model(torch.randn(5, 3))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
            ours.update_parameters(model)
            theirs.update_parameters(model)
    assert calls == [6, 2, 6, 2, 6, 2, 6, 2]
    assert all(map(torch.equal, ours.module.parameters(), theirs.module.parameters()))
    assert torch.equal(ours.module[1].num_batches_tracked, model[1].num_batches_tracked)  # other buffers are copied
    assert int(ours.n_averaged) == 4
    assert not ours.module.training
    assert not any(parameter.requires_grad for parameter in ours.module.parameters())


def test_running_statistics_of_batch_norms_are_averaged() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = MovingAverage(model, decay=0.5)
    average.update_parameters(model)
    for buffer in running_statistics(model):
        buffer.add_(1)
    expected = [each - 0.5 for each in running_statistics(model)]
    average.n_averaged.fill_(100)  # the final decay
    average.update_parameters(model)
    for found, wanted in zip(running_statistics(average.module), expected, strict=True):
        torch.testing.assert_close(found, wanted)
