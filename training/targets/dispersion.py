"""How widely a teacher's summaries spread around their mean direction: what balances the summary losses."""

import torch
from torch import Tensor, nn

from foundation.ranks import sum_over_ranks
from training.losses.summaries import angle_between


MIN_DISPERSION = 1e-8
"""Floor of the divisor, as in NVIDIA's TAO toolkit (Apache-2.0)."""


class SummaryDispersion(nn.Module):
    """Running `Disp = E[angle(y, mean direction)^2]` of one teacher's summaries, in rad^2.

    Angles of a batch are taken to the mean of all summaries up to and including it. State is in float64
    buffers.

    Args:
        num_channels: Width C of the teacher's summary.

    References:
        C-RADIOv4 tech report, Eq 5 and 6, https://arxiv.org/abs/2601.17237
    """

    count: Tensor
    total: Tensor
    squared_angle_total: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(num_channels, dtype=torch.float64))
        self.register_buffer("squared_angle_total", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, summary: Tensor) -> None:
        """Add a batch of teacher summaries, of all ranks together; a non-finite batch is left out.

        Args:
            summary: `(batch, C)`, this rank's part.
        """
        summary = summary.double()
        moments = sum_over_ranks(torch.cat([summary.new_full((1,), len(summary)), summary.sum(0)]))
        is_finite = torch.isfinite(moments).all()
        self.count += torch.where(is_finite, moments[0], 0.0)
        self.total += torch.where(is_finite, moments[1:], 0.0)
        squared_angles = angle_between(summary, self.total.expand_as(summary)).square().sum()
        self.squared_angle_total += torch.where(is_finite, sum_over_ranks(squared_angles), 0.0)

    @property
    def value(self) -> Tensor:
        """The dispersion so far in rad^2, a float64 scalar; its floor before the first update."""
        return (self.squared_angle_total / self.count.clamp(min=1)).clamp(min=MIN_DISPERSION)
