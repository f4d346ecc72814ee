"""Weights of the teachers' losses that change during a run: by how slowly a teacher is learned, or image by image."""

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

DROP_PROBABILITY = 0.5
"""UNIC's, https://arxiv.org/abs/2408.05088."""


class TeacherWeights(StepHook, nn.Module):
    """Weights of the teachers' losses, each for all losses of a teacher in one group (`LossTerm.group`).

    A weight follows the loss of the teacher's own head alone. Losses of auxiliary heads are multiplied by it too: a
    teacher that counts less does so at all depths, and a rescaled loss is scaled back at all depths. Weights are
    without gradient, the same on all ranks, and part of the checkpoint as this module's buffers.

    Attributes:
        groups: By group the teachers whose losses in it count: their factor is above 0, and for summaries they have
            one. Groups without any are left out.
        names: `GROUP/TEACHER` for each of them.

    Args:
        recipe: The teachers, their factors and the schedule.
        has_summary: By teacher whether it has a summary.
        device: Device of the losses.
    """

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__()
        self.recipe, self.device = recipe, device
        self.start_step, self.period_steps, self.ramp_steps = recipe.balancing_times()
        groups = {
            "features": [entry.name for entry in recipe.teachers if entry.feature_weight > 0],
            "summary": [each.name for each in recipe.teachers if each.summary_weight > 0 and has_summary[each.name]],
        }
        self.groups = {group: names for group, names in groups.items() if names}
        self.names = [f"{group}/{name}" for group, names in self.groups.items() for name in names]

    def ramp(self, step: int) -> float:
        """Return how far the weights are on their way from 1 to those of the method, in [0, 1]."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step) / self.ramp_steps) if self.ramp_steps else 1.0


class AdaptiveWeights(TeacherWeights):
    """A stage's prior times how slowly a teacher is learned: `prior * rate^0.5`, bounded, a mean of 1 in each group.

    The rate is the running loss over that at the start, relative to the other teachers', as GradNorm's inverse training
    rate (https://arxiv.org/abs/1711.02257); no scale of a loss changes it. Between three stages of equal length priors
    blend along a cosine. A teacher's dense losses have one weight and its summary losses another.
    """

    weights: Tensor
    means: Tensor
    num_seen: Tensor
    targets: Tensor
    references: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
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
        if step < self.start_step:
            return
        if (step - self.start_step) % self.period_steps == 0:
            self._set_targets(step)
        self.weights.copy_(1 + self.ramp(step) * (self.targets - 1))

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


class TeacherDropping(TeacherWeights):
    """In each group, each image keeps the teacher with the largest loss and drops each other one half of the time.

    The remaining losses of an image are scaled up so that all images count alike. Draws follow from the seed and the
    step: nothing is saved, and the period has no meaning. The log has each teacher's mean factor over a step's images.

    References:
        UNIC, ECCV 2024, https://arxiv.org/abs/2408.05088
    """

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self._step = 0
        self._means = torch.ones(len(self.names), device=device)
        # By partition and rows, because passes may run at the same time and end in any order.
        self._noted: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Note the step: its position on the ramp decides how much images differ."""
        self._step = step

    def weigh(self, batch: PlannedBatch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return the losses with a factor for each image."""
        weighted: dict[str, Tensor] = {}
        ramp = self.ramp(self._step)
        if ramp == 0 or not batch.teachers:  # the rows of a part without images are those of another part
            return weighted
        notes = torch.zeros(2, len(self.names), device=self.device)
        for group, teachers in self.groups.items():
            present = [name for name in teachers if name in batch.teachers]
            own = {name: term for name, term in terms.items() if term.group == group and teacher_of(name) in present}
            if not own:
                continue
            losses = {name: term.by_image() for name, term in own.items()}
            weights = {name: term.weight for name, term in own.items()}
            factors = 1 + ramp * (self._draw_factors(batch, group, present, losses, weights) - 1)
            for name, each in losses.items():
                weighted[name] = (each * factors[:, present.index(teacher_of(name))].to(each.dtype)).mean()
            indices = [self.names.index(f"{group}/{name}") for name in present]
            notes[0, indices] = factors.mean(0) * len(batch)
            notes[1, indices] = float(len(batch))
        self._noted[batch.partition, batch.rows] = notes
        return weighted

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Set the mean factors of the step over all ranks."""
        notes = [self._noted[key] for key in sorted(self._noted)]
        total, count = sum_over_ranks(torch.stack([torch.zeros(2, len(self.names), device=self.device), *notes]).sum(0))
        self._means = torch.where(count > 0, total / count, 1.0)
        self._noted = {}

    def scalars(self) -> dict[str, float]:
        """Return the mean factors of the last step."""
        return {f"weight/{name}": value for name, value in zip(self.names, self._means.tolist(), strict=True)}

    @torch.no_grad()
    def _draw_factors(
        self,
        batch: PlannedBatch,
        group: str,
        present: Sequence[str],
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
    ) -> Tensor:
        """Return the factor of each image's loss, `(images, teachers)` with a mean of 1 in each row; 0 if dropped.

        Args:
            batch: The images.
            group: The group of losses.
            present: Teachers that see the images.
            losses: By name the loss of each image.
            weights: By name the recipe's factor.
        """
        columns = [
            torch.stack([weights[key] * losses[key].float() for key in losses if teacher_of(key) == name]).sum(0)
            for name in present
        ]
        total = torch.stack(columns, dim=1)
        indices = [index for index, entry in enumerate(self.recipe.teachers) if entry.name in present]
        draws = batch.uniform(f"teacher_dropping/{group}", len(self.recipe.teachers))[:, indices].to(total.device)
        is_kept = (draws >= DROP_PROBABILITY) | (total == total.max(dim=1, keepdim=True).values)
        return len(present) * is_kept / is_kept.sum(1, keepdim=True)


METHODS: dict[str, type[TeacherWeights]] = {"adaptive": AdaptiveWeights, "teacher_dropping": TeacherDropping}
"""By `balancing.method`; "fixed" has no weights that change."""


def build_weights(recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> TeacherWeights | None:
    """Return the weights of the teachers' losses; None if they are fixed.

    Args:
        recipe: Its section `balancing` has the method.
        teachers: By name.
        device: The student's.
    """
    has_summary = {name: teacher.summary_dim is not None for name, teacher in teachers.items()}
    method = recipe.balancing.method
    return None if method == "fixed" else METHODS[method](recipe, has_summary, device)


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
