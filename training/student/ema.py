"""The exponential moving average of the student: what is exported, and what MESA compares the student with."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


Parameters = tuple[Tensor, ...] | list[Tensor]


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a frozen copy of `model` that follows it by `update_parameters(model)` after each optimizer step.

    Parameters are averaged with the rising decay of `ema_decay`; buffers are copied. The first update copies
    all.

    Args:
        model: The student, not wrapped for distributed training.
        decay: Final decay of the average, in [0, 1).

    Returns:
        The average; its network is `.module`, in eval mode and without gradients.
    """

    @torch.no_grad()
    def average(averages: Parameters, current: Parameters, num_updates: Tensor | int) -> None:
        torch._foreach_lerp_(averages, current, 1 - ema_decay(int(num_updates), decay))

    ema = AveragedModel(model, multi_avg_fn=average)
    ema.module.eval().requires_grad_(False)
    return ema


def ema_decay(num_updates: int, decay: float) -> float:
    """Return the decay of an exponential moving average after `num_updates` updates.

    Short runs would otherwise keep the random start in the average: `min(decay, (1 + n) / (10 + n))`, the
    usual warm-up (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
        num_updates: Updates done before this one.
        decay: Value that the decay rises to, in [0, 1).

    Returns:
        Share of the old average that the next update keeps.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))
