"""Weights of the teachers' losses that change during a run, by how slowly a teacher is learned."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modeling_radio.core.ranks import sum_over_ranks
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.losses.terms import LossTerm, teacher_of
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.teachers.outputs import TeacherShape
from modeling_radio.training.views.plan import PlannedBatch


MIN_LOSS = 1e-12
"""Floor of a loss that is divided by. Our choice: far below any that is left to learn from."""

WEIGHT_BOUNDS = (0.25, 3.0)
"""So that no teacher takes all, as one of AMTML-KD's did in AM-RADIO 3.4.1. Our choice."""

NUM_BOUNDING_ROUNDS = 32
"""Rounds of clipping and rescaling; each leaves a fraction of the error."""

PRIORS = {"basic": (0.45, 0.30, 0.30), "semantic": (0.35, 0.45, 0.30), "task": (0.20, 0.25, 0.40)}
"""Weight of a teacher by its role: early, in the middle and late. First come basic features, then semantics, then the
task's. Our choice: no source has such numbers."""

DIFFICULTY_POWER = 0.5
"""Strength with which slowly learned teachers gain weight: GradNorm's alpha. Our choice, within its range."""


class AdaptiveWeights(StepHook, nn.Module):
    """A stage's prior times how slowly a teacher is learned: `prior * rate^0.5`, bounded, a mean of 1 in each group.

    The rate is the running loss over that at the start, relative to the other teachers', as GradNorm's inverse training
    rate (https://arxiv.org/abs/1711.02257); no scale of a loss changes it. Between three stages of equal length priors
    blend along a cosine. A teacher's dense losses have one weight and its summary losses another (`LossTerm.group`).

    A weight follows the loss of the teacher's own head alone. Losses of auxiliary heads are multiplied by it too: a
    teacher that counts less does so at all depths. Weights are without gradient, the same on all ranks, and part of the
    checkpoint as this module's buffers.

    Attributes:
        groups: By group the teachers whose losses in it count: their factor is above 0, and for summaries they have
            one. Groups without any are left out.
        names: `GROUP/TEACHER` for each of them.

    Args:
        recipe: The teachers, their factors and roles, and the schedule.
        has_summary: By teacher whether it has a summary.
        device: Device of the losses.
    """

    weights: Tensor
    means: Tensor
    num_seen: Tensor
    targets: Tensor
    references: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__()
        self.recipe = recipe
        self.start_step, self.period_steps, self.ramp_steps = recipe.balancing_times()
        groups = {
            "features": [entry.name for entry in recipe.teachers if entry.feature_weight > 0],
            "summary": [each.name for each in recipe.teachers if each.summary_weight > 0 and has_summary[each.name]],
        }
        self.groups = {group: names for group, names in groups.items() if names}
        self.names = [f"{group}/{name}" for group, names in self.groups.items() for name in names]
        roles = {entry.name: str(entry.role) for entry in recipe.teachers}
        self._roles = [roles[teacher_of(name)] for name in self.names]
        self.register_buffer("weights", torch.ones(len(self.names), dtype=torch.float64, device=device))
        self.register_buffer("means", torch.zeros_like(self.weights))
        self.register_buffer("num_seen", torch.zeros_like(self.weights))
        self.register_buffer("targets", torch.ones_like(self.weights))
        self.register_buffer("references", torch.zeros_like(self.weights))
        self._sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Set new targets at the beginning of a period, and move the weights along the ramp."""
        steps_since = step - self.start_step
        if steps_since < 0:
            return
        if steps_since % self.period_steps == 0:
            self._set_targets(step)
        ramp = min(1.0, steps_since / self.ramp_steps) if self.ramp_steps else 1.0
        self.weights.copy_(1 + ramp * (self.targets - 1))

    def weigh(self, batch: PlannedBatch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return each loss times its weight."""
        weights = dict(zip(self.names, self.weights, strict=True))
        weighted = {}
        for name, term in terms.items():
            own = weights.get(f"{term.group}/{teacher_of(name)}")
            if own is not None:
                weighted[name] = own.to(term.value.dtype) * term.value
        return weighted

    @torch.no_grad()
    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Add losses, weighted by the share of the partition's images that the batch has."""
        share = len(batch) / batch.num_images
        for index, name in enumerate(self.names):
            if name in losses and teacher_of(name) in batch.teachers:
                self._sums[0, index] += share * losses[name].detach()
                self._sums[1, index] += share

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Update the running means, each over the steps of a period; a step with a non-finite loss is skipped."""
        total, share = sum_over_ranks(self._sums)
        losses = total / share
        is_valid = torch.isfinite(losses).all()
        decay = torch.where(self.num_seen > 0, 1 - 1 / self.period_steps, 0.0)
        self.means.copy_(torch.where(is_valid, decay * self.means + (1 - decay) * losses, self.means))
        self.num_seen += is_valid
        self._sums = torch.zeros_like(self._sums)

    def scalars(self) -> dict[str, float]:
        """Return the weights by `weight/GROUP/TEACHER`."""
        return {f"weight/{name}": value for name, value in zip(self.names, self.weights.tolist(), strict=True)}

    def _set_targets(self, step: int) -> None:
        """Compare the running losses with those at the start."""
        is_first = (self.references == 0).all() | (step == self.start_step)
        self.references.copy_(torch.where(is_first, self.means, self.references))
        rates = self.means.clamp(min=MIN_LOSS) / self.references.clamp(min=MIN_LOSS)
        sizes = [len(teachers) for teachers in self.groups.values()]
        rates = torch.cat([part / part.mean() for part in rates.split(sizes)])
        progress = step / self.recipe.schedule.num_steps
        priors = rates.new_tensor([prior_at(role, progress) for role in self._roles])
        self.targets.copy_(torch.cat([bounded(part) for part in (priors * rates**DIFFICULTY_POWER).split(sizes)]))


def build_weights(recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> AdaptiveWeights | None:
    """Return the weights of the teachers' losses; None if they are fixed.

    Args:
        recipe: Its section `balancing` has the method.
        teachers: By name.
        device: The student's.
    """
    has_summary = {name: teacher.summary_dim is not None for name, teacher in teachers.items()}
    return None if recipe.balancing.method == "fixed" else AdaptiveWeights(recipe, has_summary, device)


def prior_at(role: str, progress: float) -> float:
    """Return the prior of a role at a share of the run: three stages' values at their middles, blended between."""
    early, middle, late = PRIORS[role]
    stage = min(max(3 * progress - 0.5, 0.0), 2.0)  # 0, 1 and 2 at the middles of the stages
    first, second = (early, middle) if stage < 1 else (middle, late)
    share = (1 - math.cos(math.pi * (stage - (stage >= 1)))) / 2
    return first + share * (second - first)


def bounded(weights: Tensor) -> Tensor:
    """Return the weights of a group with a mean of 1, within `WEIGHT_BOUNDS`."""
    for _ in range(NUM_BOUNDING_ROUNDS):
        weights = (weights * len(weights) / weights.sum()).clamp(*WEIGHT_BOUNDS)
    return weights
