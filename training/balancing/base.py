"""What weighs the teachers' losses: the interface, its schedule, and the running losses that most methods look at."""

import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.ranks import sum_over_ranks
from modeling_radio import RadioModel
from training.recipe import Recipe
from training.views.batches import Batch


GROUPS = {
    "features": "features",
    "dense_contrastive": "features",
    "summary": "summary",
    "contrastive": "summary",
    "tap_features": "features",
    "tap_summary": "summary",
}
"""By kind of loss the group that it is weighed with: apart, or summaries swallow the dense losses (PHI-S, A.8.1).

What moves a weight is the kind of the group's own name. A teacher's taps follow the weight of its main loss, so that
who counts less does so at all depths, and a rescaled loss is rescaled back at all of them.
"""

MIN_LOSS = 1e-12
"""Floor of a loss that others are divided by. Our choice: far below any that is left to learn from."""

WEIGHT_BOUNDS = (0.25, 3.0)
"""So that no teacher takes all as one of AMTML-KD's did in AM-RADIO 3.4.1. Our choice."""

NUM_BOUNDING_ROUNDS = 32
"""Rounds of clipping and rescaling; each shrinks what is left to do several times over."""


def teacher_of(name: str) -> str:
    """Return whose loss it is, given its name `KIND/TEACHER`, or `KIND/TEACHER@BLOCK` of a tap."""
    return name.partition("/")[2].partition("@")[0]


class LossTerm(NamedTuple):
    """One loss of one teacher in one pass.

    Attributes:
        weight: The recipe's factor.
        value: Scalar, the mean over the pass's images; 0 where the teacher does not see them.
        by_image: Returns the loss of each image, `(images,)`.
        reduce: Returns the scalar of losses of images; of those of `by_image` it is `value`.
    """

    weight: float
    value: Tensor
    by_image: Callable[[], Tensor]
    reduce: Callable[[Tensor], Tensor]


class TeacherWeights(nn.Module):
    """Weights of the teachers' losses; this one is `fixed`: all 1, and nothing is multiplied or kept.

    Weights are without gradient, the same on all ranks, and part of the checkpoint as this module's buffers.

    Args:
        recipe: Names teachers, their factors and the schedule.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.start_step, self.period_steps, self.ramp_steps = recipe.balancing_times()

    def begin_step(self, step: int) -> None:
        """Set the weights of a step from what was seen before it."""

    def watching(self, student: RadioModel) -> contextlib.AbstractContextManager:
        """Return the context of the student's passes that are to be weighed, for what looks into them."""
        return contextlib.nullcontext()

    def weigh(self, batch: Batch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return the losses of a pass, weighted but for the recipe's factors.

        Args:
            batch: The images.
            terms: By name, `KIND/TEACHER` or `KIND/TEACHER@BLOCK`.
        """
        return {name: term.value for name, term in terms.items()}

    def observe(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """See the losses of a pass by name, as they are without weights."""

    def end_step(self) -> None:
        """Count what all ranks saw in the step; all of them must take part."""

    def scalars(self) -> dict[str, float]:
        """Return `weight/GROUP/TEACHER` for the log; nothing where nothing is weighed."""
        return {}

    def ramp(self, step: int) -> float:
        """Return how far the weights are from 1 to what the method says, in [0, 1]."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step) / self.ramp_steps) if self.ramp_steps else 1.0


class GroupWeights(TeacherWeights):
    """Base of what gives each teacher's dense losses one weight and its summary losses another.

    Attributes:
        groups: By group the teachers in it: those with a factor above 0, of summaries those that have one.

    Args:
        recipe: The recipe.
        has_summary: By teacher whether it has a summary.
        device: Where the weights are.
    """

    weights: Tensor
    means: Tensor
    num_seen: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe)
        self.groups = groups_of(recipe, has_summary)
        self.names = [f"{group}/{name}" for group, names in self.groups.items() for name in names]
        self.register_buffer("weights", torch.ones(len(self.names), dtype=torch.float64, device=device))
        self.register_buffer("means", torch.zeros_like(self.weights))
        self.register_buffer("num_seen", torch.zeros_like(self.weights))
        self._sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        """Ask the method at the end of each period, and ramp what it says."""
        if (step - self.start_step) % self.period_steps == 0:
            self.end_period(step)
        if step >= self.start_step:
            self.weights.copy_(1 + self.ramp(step) * (self.wanted(step) - 1))

    def end_period(self, step: int) -> None:
        """Look at the period that is over; steps before `start_step` have periods as well."""

    def wanted(self, step: int) -> Tensor:
        """Return the weights that the ramp ends at, `(len(names),)` in the order of `names`."""
        raise NotImplementedError

    def weigh(self, batch: Batch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return each loss times its weight."""
        return {name: self._weight_of(name, term.value) * term.value for name, term in terms.items()}

    @torch.no_grad()
    def observe(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Add losses, by the share of the partition's images that the pass has."""
        share = len(batch) / len(batch.all_tokens)
        for place, name in enumerate(self.names):
            if name in losses and teacher_of(name) in batch.teachers:
                self._sums[0, place] += share * losses[name].detach()
                self._sums[1, place] += share

    @torch.no_grad()
    def end_step(self) -> None:
        """Update the running means, each over as many steps as a period has; what is not finite is passed over."""
        total, share = sum_over_ranks(self._sums)
        losses = total / share
        is_valid = torch.isfinite(losses).all()  # a step with a bad loss is skipped as a whole
        decay = torch.where(self.num_seen > 0, 1 - 1 / self.period_steps, 0.0)
        self.means.copy_(torch.where(is_valid, decay * self.means + (1 - decay) * losses, self.means))
        self.num_seen += is_valid
        self.see_step(losses, is_valid)
        self._sums = torch.zeros_like(self._sums)

    def see_step(self, losses: Tensor, is_valid: Tensor) -> None:
        """See the mean losses of a step over all ranks, in the order of `names`, and whether all are finite."""

    def scalars(self) -> dict[str, float]:
        """Return the weights by `weight/GROUP/TEACHER`."""
        return {f"weight/{name}": value for name, value in zip(self.names, self.weights.tolist(), strict=True)}

    def by_group(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Apply a function to each group's part of `values` by itself."""
        return torch.cat([function(part) for part in values.split([len(each) for each in self.groups.values()])])

    def _weight_of(self, name: str, like: Tensor) -> Tensor | float:
        own = f"{GROUPS[name.partition('/')[0]]}/{teacher_of(name)}"
        return self.weights[self.names.index(own)].to(like.dtype) if own in self.names else 1.0


class PeriodWeights(GroupWeights):
    """Base of weights that move at the end of a period only, to `targets`."""

    targets: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("targets", torch.ones_like(self.weights))

    def wanted(self, step: int) -> Tensor:
        """Return the weights of the last period's end."""
        return self.targets


class RelativeRates(PeriodWeights):
    """Base of weights that follow how slowly each teacher is learned, beside the others of its group.

    That is GradNorm's relative inverse training rate: the running loss over that at the start, over its mean in the
    group (https://arxiv.org/abs/1711.02257).
    """

    references: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("references", torch.zeros_like(self.weights))

    def end_period(self, step: int) -> None:
        """Compare the running losses with those at the start."""
        if step < self.start_step:
            return
        is_first = (self.references == 0).all() | (step == self.start_step)
        self.references.copy_(torch.where(is_first, self.means, self.references))
        rates = self.means.clamp(min=MIN_LOSS) / self.references.clamp(min=MIN_LOSS)
        self.follow(step, self.by_group(lambda part: part / part.mean(), rates))

    def follow(self, step: int, rates: Tensor) -> None:
        """Set `targets` to what these rates, `(len(names),)`, ask for."""
        raise NotImplementedError


def groups_of(recipe: Recipe, has_summary: Mapping[str, bool]) -> dict[str, list[str]]:
    """Return by group the teachers whose losses in it count, groups without any left out."""
    groups = {
        "features": [entry.name for entry in recipe.teachers if entry.feature_weight > 0],
        "summary": [entry.name for entry in recipe.teachers if entry.summary_weight > 0 and has_summary[entry.name]],
    }
    return {group: names for group, names in groups.items() if names}


def sum_to_count(weights: Tensor) -> Tensor:
    """Scale weights of a group so that they sum to how many there are."""
    return weights * len(weights) / weights.sum()


def bounded(weights: Tensor) -> Tensor:
    """Return weights with a mean of 1, within `WEIGHT_BOUNDS`."""
    for _ in range(NUM_BOUNDING_ROUNDS):
        weights = sum_to_count(weights).clamp(*WEIGHT_BOUNDS)
    return weights
