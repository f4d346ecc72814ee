"""Weights by how fast each teacher is learned: `adaptive` and `dwa`; no scale of a loss changes them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from training.balancing.base import MIN_LOSS, PeriodWeights, RelativeRates, bounded
from training.recipe import Recipe


PRIORS = {"basic": (0.45, 0.30, 0.30), "semantic": (0.35, 0.45, 0.30), "task": (0.20, 0.25, 0.40)}
"""By role how much a teacher counts early, in the middle and late: first basic features, then semantics, then the
task's. Our choice: no source has such numbers."""

DIFFICULTY_POWER = 0.5
"""How strongly a teacher that is learned slowly gains: GradNorm's alpha. Our choice, within the range that it tries."""

DWA_TEMPERATURE = 2.0
"""Liu et al., https://arxiv.org/abs/1803.10704."""


class AdaptiveWeights(RelativeRates):
    """A stage's prior times how slowly a teacher is learned: `prior * rate^0.5`, bounded, a mean of 1 in each group.

    The rate is the running loss over that at the start, relative to the other teachers', as GradNorm's inverse training
    rate (https://arxiv.org/abs/1711.02257). Between three stages of equal length priors blend along a cosine.
    """

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        roles = {entry.name: str(entry.role) for entry in recipe.teachers}
        self._roles = [roles[name] for names in self.groups.values() for name in names]

    def follow(self, step: int, rates: Tensor) -> None:
        """Ask for the stage's prior times how hard each teacher is."""
        progress = step / self.recipe.schedule.num_steps
        priors = rates.new_tensor([prior_at(role, progress) for role in self._roles])
        self.targets.copy_(self.by_group(bounded, priors * rates**DIFFICULTY_POWER))


class DynamicWeightAverage(PeriodWeights):
    """Softmax of the loss of the last period over that of the period before, at a temperature of 2.

    Bounded like adaptive weights, which is our addition: a loss that grows tenfold from one period to the next would
    take 99 % of a group of three.

    References:
        DWA: Liu et al., CVPR 2019, https://arxiv.org/abs/1803.10704
    """

    period_sum: Tensor
    period_count: Tensor
    last: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("period_sum", torch.zeros_like(self.weights))
        self.register_buffer("period_count", torch.zeros_like(self.weights))
        self.register_buffer("last", torch.zeros_like(self.weights))

    def see_step(self, losses: Tensor, is_valid: Tensor) -> None:
        """Add a step to the period."""
        self.period_sum += torch.where(is_valid, losses, 0.0)
        self.period_count += is_valid

    def end_period(self, step: int) -> None:
        """Compare two periods; the first two have weights of 1."""
        present = self.period_sum / self.period_count.clamp(min=1)
        rates = present / self.last.clamp(min=MIN_LOSS)
        softmaxes = self.by_group(lambda part: bounded((part / DWA_TEMPERATURE).softmax(0)), rates)
        is_known = (self.last > 0).all() & (self.period_count > 0).all()
        self.targets.copy_(torch.where(is_known, softmaxes, self.targets))
        self.last.copy_(torch.where(self.period_count > 0, present, self.last))
        self.period_sum.zero_()
        self.period_count.zero_()


def prior_at(role: str, progress: float) -> float:
    """Return how much a role counts at a share of the run: three stages' values at their middles, blended between."""
    early, middle, late = PRIORS[role]
    place = min(max(3 * progress - 0.5, 0.0), 2.0)  # 0, 1 and 2 at the middles of the stages
    first, second = (early, middle) if place < 1 else (middle, late)
    share = (1 - math.cos(math.pi * (place - (place >= 1)))) / 2
    return first + share * (second - first)
