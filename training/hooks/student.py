"""Hooks that keep the student's layers true to their statistics: targets, spectral norms, batch norms."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.student.ema import running_statistics
from modeling_radio.training.student.refits import rebase_heads
from modeling_radio.training.student.regularizers import update_spectral_norms
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.targets.statistics import TeacherStatistics
from modeling_radio.training.views.plan import PlannedBatch


class SpectralNorms(StepHook):
    """Renews the spectral norms of reparametrized weights.

    Args:
        student: Has such weights.
    """

    def __init__(self, student: RadioModel) -> None:
        self._student = student

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Do one power iteration."""
        update_spectral_norms(self._student)


class Standardization(StepHook):
    """Keeps the teachers' statistics, and moves heads and optimizer with their refits.

    Args:
        statistics: Statistics of the teachers.
        models: The student and its moving average.
        optimizer: The student's.
        further_linears: Returns the last layers of further heads that predict a target.
    """

    def __init__(
        self,
        statistics: TeacherStatistics,
        models: Sequence[RadioModel],
        optimizer: Optimizer,
        further_linears: Callable[[str], Iterable[nn.Linear]],
    ) -> None:
        self._statistics, self._models, self._optimizer = statistics, models, optimizer
        self._further_linears = further_linears

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Refit the targets' maps if that is due."""
        changes = self._statistics.begin_step(step)
        rebase_heads(changes, self._models, self._optimizer, self._further_linears)

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Add the teachers' outputs."""
        self._statistics.update(example.targets)

    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Add up the statistics of all ranks."""
        self._statistics.end_step()

    def scalars(self) -> dict[str, float]:
        """Return scales of PHI-S and dispersions."""
        return self._statistics.scalars()


class RunningStatistics(StepHook):
    """The running means and variances of the batch norms of a student.

    In a pass a batch norm uses the statistics of its own images, on its own rank. After a step the running ones are
    replaced by their mean over the images of all ranks, so that all ranks, a checkpoint and an export have the same; a
    step that is skipped leaves them as they were. Checkpoints hold them as they hold every buffer.

    Args:
        student: Has batch norms; not wrapped for several ranks.
        sum_over_ranks: Function of a tensor that returns its sum over all ranks; `None` in a single process.
    """

    def __init__(self, student: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor] | None) -> None:
        self._student, self._sum_over_ranks = student, sum_over_ranks
        self._before: list[Tensor] = []
        self._resting: list[_BatchNorm] = []
        self._num_images = 0

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Remember them, for a step that is skipped."""
        self._num_images = 0
        self._before = [buffer.clone() for buffer in running_statistics(self._student)]

    def begin_pass(self, batch: PlannedBatch) -> None:
        """Count the images; without any (a pass with a dummy image) batch norms use their running statistics."""
        num_images = len(batch) if batch.teachers else 0
        self._num_images += num_images
        modules = () if num_images else self._student.modules()
        self._resting = [module for module in modules if isinstance(module, _BatchNorm) and module.training]
        for norm in self._resting:
            norm.training = False

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """End the pass."""
        for norm in self._resting:
            norm.training = True
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)  # as on the other ranks
        self._resting = []

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Average them over the images of all ranks, or restore them; all ranks take part."""
        buffers = running_statistics(self._student)
        if is_skipped:
            torch._foreach_copy_(buffers, self._before)
        elif self._sum_over_ranks is not None:
            number = buffers[0].new_tensor([self._num_images])
            sums = self._sum_over_ranks(torch.cat([number, *(number * buffer.flatten() for buffer in buffers)]))
            parts = (sums[1:] / sums[0]).split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(own) for part, own in zip(parts, buffers, strict=True)])
