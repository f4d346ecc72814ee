"""Running statistics of batch norms over the steps and ranks of a run.

Each pass is normalized by the statistics of its own images, on its own rank. After a step the running ones are replaced
by their mean over ranks, so that all ranks, a checkpoint and an export have the same; a step that is skipped leaves
them as they were. Checkpoints hold them as they hold every buffer, and the moving average averages them (`ema.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return running means and variances of all batch norms, in the order of the modules."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


class RunningStatistics:
    """The running means and variances of a student.

    Args:
        student: Not wrapped for several ranks.
        mean_over_ranks: Function of a tensor that returns its mean over all ranks; `None` in a single process.
    """

    def __init__(self, student: nn.Module, mean_over_ranks: Callable[[Tensor], Tensor] | None) -> None:
        self._student, self._mean_over_ranks = student, mean_over_ranks
        self._has_some = len(running_statistics(student)) > 0
        self._before: list[Tensor] = []

    def begin_step(self) -> None:
        """Remember them, for a step that is skipped."""
        if self._has_some:
            self._before = [buffer.clone() for buffer in running_statistics(self._student)]

    @torch.no_grad()
    def end_step(self, *, is_skipped: bool) -> None:
        """Average them over ranks, or restore them; all ranks take part."""
        if not self._has_some:
            return
        buffers = running_statistics(self._student)
        if is_skipped:
            torch._foreach_copy_(buffers, self._before)
        elif self._mean_over_ranks is not None:
            means = self._mean_over_ranks(torch.cat([buffer.flatten() for buffer in buffers]))
            parts = means.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(own) for part, own in zip(parts, buffers, strict=True)])
