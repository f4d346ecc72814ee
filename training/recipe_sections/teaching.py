"""What we add to C-RADIOv4's way of teaching: weights of teachers that move, contrasts, and taps within the trunk."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from annotated_types import Gt, Le
from pydantic import Field, model_validator

from foundation.settings import require
from training.recipe_sections.base import RecipeSection


Role = Literal["basic", "semantic", "task"]
"""What a teacher is learned for, in the order in which the trunk is to learn it."""


class BalancingRecipe(RecipeSection):
    """Weights of the teachers' losses that change while the run goes on; our own addition, C-RADIOv4 has none.

    Times that are not set follow from `schedule.num_steps`: see `Recipe.balancing_times`.

    Attributes:
        method: A key of `training.balancing.METHODS`; "fixed" leaves the factors of the teachers' entries.
        period_steps: Steps between two looks at the losses, and over how many they are averaged; None for a hundredth
            of the run.
        start_step: Step from which weights move; None for the end of the warm-up, at most a quarter of the run, or for
            the step at which a frozen trunk begins to learn.
        ramp_steps: Steps over which they move from 1 to what the method says; None for a tenth of the run.
    """

    method: Literal["fixed", "adaptive", "teacher_dropping"] = "fixed"
    period_steps: int | None = Field(None, gt=0)
    start_step: int | None = Field(None, ge=0)
    ramp_steps: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "BalancingRecipe":
        for name in () if "method" in self.model_fields_set else ("period_steps", "start_step", "ramp_steps"):
            rule = "left out where nothing moves: give a `method`, 'fixed' for none"
            require(getattr(self, name) is None, name, getattr(self, name), rule)
        return self


class BalancingTimes(NamedTuple):
    """When the weights of teachers move, in steps; a `BalancingRecipe` with all of it set."""

    start_step: int
    period_steps: int
    ramp_steps: int


class ContrastiveRecipe(RecipeSection):
    """A further loss: an image is to lie as near to others as in the teacher; our own addition, C-RADIOv4 has none.

    All parts of a step are held in memory at once, since each is compared with the images of all.

    Attributes:
        weight: Factor of the loss, besides a teacher's `summary_weight`; 0 for none. 0.1 is a start, and cost dense
            features and masks in the study `weightings`.
        bank_size: Summaries of the steps before that an image is compared with as well, of each teacher.
    """

    weight: float = Field(0.0, ge=0)
    bank_size: int = Field(4096, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ContrastiveRecipe":
        is_left_out = "weight" in self.model_fields_set or self.bank_size == 4096
        rule = "left out where there is no such loss: give a `weight`, 0 for none"
        require(is_left_out, "bank_size", self.bank_size, rule)
        return self


TAP_SCHEMES: dict[str, list[dict[Role, float]]] = {
    "strict": [
        {"basic": 1.0, "semantic": 0.0, "task": 0.0},
        {"basic": 0.0, "semantic": 1.0, "task": 0.0},
        {"basic": 0.0, "semantic": 0.0, "task": 1.0},
    ],
    "soft": [
        {"basic": 0.8, "semantic": 0.15, "task": 0.05},
        {"basic": 0.15, "semantic": 0.7, "task": 0.15},
        {"basic": 0.05, "semantic": 0.15, "task": 0.8},
    ],
}
"""By name what each role counts by at the low, the middle and the upper tap. All numbers are our choice: nobody has
published which depth is for whom."""

TAP_DEPTHS = [1 / 3, 2 / 3, 1.0]
"""Our choice: the low, the middle and the upper tap."""

TAP_WEIGHT = 0.25
"""Our choice. Tap losses help the main ones, and shall not outweigh them."""

DECAYING_SHARE = 0.3
"""Of the run, at whose end tap losses fade out, so that it ends on what is exported. Our choice."""


class TapsRecipe(RecipeSection):
    """Losses within the trunk: what some blocks say, through heads that are thrown away, compared with teachers.

    So low blocks can learn basic features, middle ones semantics, upper ones a task's; the losses of the trunk's end
    stay as they are. Our own addition, C-RADIOv4 has none. Heads on the way and their losses follow UNIC
    (https://arxiv.org/abs/2408.05088) and SAK (https://arxiv.org/abs/2410.14633); who is learned where is our choice.

    Attributes:
        scheme: What each teacher counts by at each tap, by its `role`: "strict" (basic at the low tap, semantic at the
            middle one, task at the upper one) or "soft" (mostly so). None for no taps, or "soft" where a `weight` is
            given.
        weight: Factor of their losses, besides a teacher's `feature_weight` and `summary_weight`; 0 for no taps, None
            for 0.25 where a `scheme` is given.
        decay_steps: Steps at the end of the run over which the factor falls to 0 along a cosine; None for three tenths
            of the run.
        targets: What a tap is compared with: the teacher's "last" features (whatever teacher, and from a cache too), or
            its features at the "matching" depth of its own blocks, standardized by themselves: of online teachers whose
            class knows its blocks. Summaries are the teacher's last either way.
        depths: Where the three taps are, as shares of the trunk's blocks. With ViTDet windows a tap moves to the
            nearest block of global attention, of two as near the later one, and stays there for the whole run.
    """

    scheme: Literal["strict", "soft"] | None = None
    weight: float | None = Field(None, ge=0)
    decay_steps: int | None = Field(None, ge=0)
    targets: Literal["last", "matching"] = "last"
    depths: list[Annotated[float, Gt(0), Le(1)]] = TAP_DEPTHS

    @model_validator(mode="after")
    def _check(self) -> "TapsRecipe":
        percents = [round(100 * depth) for depth in self.depths]  # by which targets are called
        is_ascending = len(set(percents)) == 3 and sorted(self.depths) == self.depths
        rule = "three shares above 0 and at most 1, in ascending order and a hundredth apart"
        require(is_ascending and len(self.depths) == 3, "depths", self.depths, rule)
        about = {"decay_steps": None, "targets": "last", "depths": TAP_DEPTHS}
        for name, default in about.items() if self.scheme is None and self.weight is None else ():
            rule = "left out where there are no taps: give a `scheme` or a `weight`, 0 for none"
            require(getattr(self, name) == default, name, getattr(self, name), rule)
        return self

    @property
    def is_used(self) -> bool:
        """Whether there are taps: a scheme or a weight is given, and the weight is not 0."""
        return self.weight != 0 and not (self.scheme is None and self.weight is None)

    def shares(self, roles: Mapping[str, Role]) -> list[dict[str, float]]:
        """Return for each of `depths` what each teacher counts by at that tap.

        Args:
            roles: By name of the teacher.
        """
        taps = TAP_SCHEMES["soft" if self.scheme is None else self.scheme]
        return [{name: shares[role] for name, role in roles.items()} for shares in taps]

    def weight_at(self, step: int, num_steps: int) -> float:
        """Return the factor of tap losses in a 0-based step of a run."""
        weight = TAP_WEIGHT if self.weight is None else self.weight
        decay_steps = math.ceil(DECAYING_SHARE * num_steps) if self.decay_steps is None else self.decay_steps
        steps_left = num_steps - step
        if steps_left >= decay_steps:
            return weight
        return weight * (1 - math.cos(math.pi * steps_left / decay_steps)) / 2

    def target_depth(self, depth: float) -> float:
        """Return at which share of a teacher's blocks the tap at a depth of the student looks: 1 is its answer."""
        return depth if self.targets == "matching" else 1.0


def target_name(teacher: str, depth: float) -> str:
    """Return what a teacher's features at a depth are called: "dino_v3@33%", or "dino_v3" at the end."""
    return teacher if depth == 1 else f"{teacher}@{100 * depth:.0f}%"
