"""Weights by how large a loss is: `ada_loss` and `uncertainty`; the scale of a loss cancels in the weighted loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from training.balancing.base import MIN_LOSS, GroupWeights
from training.recipe import Recipe


UNCERTAINTY_RATE = 0.1
"""Step of a log variance at the end of each period: about ten periods from one value to another. Our choice."""


class AdaLoss(GroupWeights):
    """One over the running loss, so that each weighted loss is about 1.

    References:
        Hu et al., AAAI 2019, as used in AM-RADIO (https://arxiv.org/abs/2312.06709, 3.4.1), where it lost to equal
        weights on dense tasks.
    """

    targets: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("targets", torch.ones_like(self.weights))

    def end_period(self, step: int) -> None:
        """Look at the running losses."""
        inverse = 1 / self.means.clamp(min=MIN_LOSS)
        self.targets.copy_(torch.where((self.num_seen > 0).all(), inverse, self.targets))

    def wanted(self, step: int) -> Tensor:
        """Return the weights of the last period's end."""
        return self.targets


class UncertaintyWeights(GroupWeights):
    """A learned log variance `b` for each loss, that minimizes `exp(-b) * loss + softplus(b)`; its weight is `exp(-b)`.

    The variances move at the end of each period along the gradient for the running losses of all ranks; the student's
    optimizer does not know them.

    References:
        Kendall et al., https://arxiv.org/abs/1705.07115, in the form of AM-RADIO's appendix E.
    """

    log_variances: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("log_variances", torch.zeros_like(self.weights))

    def end_period(self, step: int) -> None:
        """Move the log variances."""
        if step < self.start_step:
            return
        slope = self.log_variances.sigmoid() - (-self.log_variances).exp() * self.means
        slope = torch.where(self.num_seen > 0, slope.clamp(-1, 1), 0.0)  # a loss far above 1 must not throw it away
        self.log_variances -= UNCERTAINTY_RATE * slope

    def wanted(self, step: int) -> Tensor:
        """Return one over the variances."""
        return (-self.log_variances).exp()
