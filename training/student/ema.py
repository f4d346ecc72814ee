"""The moving average of the student's weights, which MESA compares the student with, and which is exported."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """A frozen copy of a model, `.module`, that follows it by `update_parameters(model)` after each optimizer step.

    Parameters, and the running statistics of batch norms, are averaged with the rising decay of `ema_decay`; other
    buffers are copied. The first update copies all. Each update is one call for all parameters, while PyTorch's own
    loop handles them one by one.

    Args:
        model: The student, not wrapped for distributed training.
        decay: Final decay of the average, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self._has_statistics = len(running_statistics(model)) > 0
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the parameters of `model`, and copy its buffers."""
        num_updates = int(self.n_averaged)  # on the CPU: no wait for a device
        share = 1 - ema_decay(num_updates, self.decay) if num_updates else 1.0
        own, theirs = (running_statistics(each) if self._has_statistics else [] for each in (self.module, model))
        torch._foreach_lerp_(tuple(self.module.parameters()), tuple(model.parameters()), share)
        if own:  # apart from parameters, which FSDP shards
            torch._foreach_lerp_(own, theirs, share)
        averaged = {id(statistic) for statistic in own}
        pairs = zip(self.module.buffers(), model.buffers(), strict=True)
        copied = [(old, new) for old, new in pairs if id(old) not in averaged]
        if copied:
            torch._foreach_copy_([old for old, _ in copied], [new for _, new in copied])
        self.n_averaged += 1


def ema_decay(num_updates: int, decay: float) -> float:
    """Return the decay of an exponential moving average after `num_updates` updates.

    `min(decay, (1 + n) / (10 + n))`, the usual warm-up, as in TensorFlow's `ExponentialMovingAverage`. Otherwise short
    runs would keep the random start in the average.

    Args:
        num_updates: Updates before this one.
        decay: Final decay, in [0, 1).

    Returns:
        Share of the old average that the next update keeps.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return running means and variances of all batch norms, in the order of the modules."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]
