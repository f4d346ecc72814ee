"""The exponential moving average of the student: what is exported, and what MESA compares the student with."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.schedules import ema_decay


Parameters = tuple[Tensor, ...] | list[Tensor]


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a frozen copy of `model` that follows it by `update_parameters(model)` after each optimiser step.

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
