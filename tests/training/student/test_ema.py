import pytest
import torch
from torch import nn

from training.student.ema import build_ema, ema_decay


def test_decay_rises_to_its_value() -> None:
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(10_000, 0.99) == 0.99
    decays = [ema_decay(step, 0.9) for step in range(200)]
    assert decays == sorted(decays)


def test_average_follows_the_model() -> None:
    model = nn.Linear(2, 2)
    ema = build_ema(model, 0.5)
    ema.update_parameters(model)
    first = model.weight.detach().clone()
    assert torch.equal(ema.module.weight, first)
    with torch.no_grad():
        model.weight.fill_(7.0)
    ema.update_parameters(model)
    decay = ema_decay(1, 0.5)
    torch.testing.assert_close(ema.module.weight, decay * first + (1 - decay) * 7)
    assert not ema.module.weight.requires_grad
    assert not ema.module.training


def test_buffers_are_copied() -> None:
    model = nn.BatchNorm1d(2)
    ema = build_ema(model, 0.9)
    for _ in range(3):
        model.running_mean.add_(1.0)
        ema.update_parameters(model)
    assert torch.equal(ema.module.running_mean, model.running_mean)
