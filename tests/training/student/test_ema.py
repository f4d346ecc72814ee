import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from modeling_radio.training.student.ema import MovingAverage, RunningStatistics, ema_decay, running_statistics


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


# Running statistics of batch norms


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


def test_they_are_averaged_over_the_images_of_all_ranks():
    model = build()
    statistics = RunningStatistics(model, lambda own: own + torch.cat([torch.tensor([1.0]), torch.full((8,), 7.0)]))
    before = [each.clone() for each in running_statistics(model)]
    statistics.begin_step()
    with statistics.in_pass(3):
        pass
    statistics.end_step(is_skipped=False)
    for now, then in zip(running_statistics(model), before, strict=True):
        torch.testing.assert_close(now, (3 * then + 7) / 4)


def test_a_pass_without_images_uses_them_and_leaves_them():
    """Its single image may have a single position, of which no batch norm has a variance."""
    model = build()
    model.append(nn.BatchNorm2d(4).eval())  # frozen
    statistics = RunningStatistics(model, None)
    before = [each.clone() for each in running_statistics(model)]
    statistics.begin_step()
    with statistics.in_pass(0):
        model(torch.rand(1, 3, 1, 1)).sum().backward()
    assert all(map(torch.equal, before, running_statistics(model)))
    assert [model[1].training, model[2].training] == [True, False]
    assert [int(model[index].num_batches_tracked) for index in (1, 2)] == [1, 0]
    with statistics.in_pass(2):
        model(torch.rand(2, 3, 4, 4))
    assert not torch.equal(before[0], running_statistics(model)[0])


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
