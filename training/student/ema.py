"""Averages of the student's state: the moving average of its weights, and running statistics of batch norms.

The moving average is what MESA compares the student with, and what is exported. In a pass a batch norm uses the
statistics of its own images, on its own rank. After a step the running ones are replaced by their mean over the images
of all ranks, so that all ranks, a checkpoint and an export have the same; a step that is skipped leaves them as they
were. Checkpoints hold them as they hold every buffer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class RunningStatistics:
    """The running means and variances of a student.

    Args:
        student: Not wrapped for several ranks.
        sum_over_ranks: Function of a tensor that returns its sum over all ranks; `None` in a single process.
    """

    def __init__(self, student: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor] | None) -> None:
        self._student, self._sum_over_ranks = student, sum_over_ranks
        self._has_some = len(running_statistics(student)) > 0
        self._before: list[Tensor] = []
        self._num_images = 0

    def begin_step(self) -> None:
        """Remember them, for a step that is skipped."""
        self._num_images = 0
        if self._has_some:
            self._before = [buffer.clone() for buffer in running_statistics(self._student)]

    @contextmanager
    def in_pass(self, num_images: int) -> Iterator[None]:
        """Count the images of a pass forward and backward; without any, batch norms use their running statistics.

        Args:
            num_images: Number of images that count; 0 for a pass with a dummy image.
        """
        self._num_images += num_images
        modules = self._student.modules() if self._has_some and not num_images else ()
        resting = [module for module in modules if isinstance(module, _BatchNorm) and module.training]
        for norm in resting:
            norm.training = False
        try:
            yield
        finally:
            for norm in resting:
                norm.training = True
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.add_(1)  # as on the other ranks

    @torch.no_grad()
    def end_step(self, *, is_skipped: bool) -> None:
        """Average them over the images of all ranks, or restore them; all ranks take part."""
        if not self._has_some:
            return
        buffers = running_statistics(self._student)
        if is_skipped:
            torch._foreach_copy_(buffers, self._before)
        elif self._sum_over_ranks is not None:
            number = buffers[0].new_tensor([self._num_images])
            sums = self._sum_over_ranks(torch.cat([number, *(number * buffer.flatten() for buffer in buffers)]))
            parts = (sums[1:] / sums[0]).split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(own) for part, own in zip(parts, buffers, strict=True)])
