"""The protocol of everything that acts on each step of a run beside the losses of the teachers' own heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from modeling_radio.training.losses.terms import LossTerm
from modeling_radio.training.student.packing import StudentOutput
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import PlannedBatch


HeadLosses = Callable[[str, str], dict[str, LossTerm]]
"""Function of a teacher and of one of the student's heads, by name.

It returns the losses `"features"` and, if both have a summary, `"summary"`.
"""


class StepHook:
    """Acts on each step. All methods do nothing here: a hook overrides those that it needs.

    The calls of a step, in this order: `begin_step`; then for each part of the step (one batch; a step has several with
    accumulation) `begin_pass`, `terms` and `weigh` while its losses are computed, and `see` after its backward pass; at
    last `end_step`, before the optimizer's step. The hooks of a run are called in the order of their list.

    All ranks call `begin_step`, `end_step` and `scalars` together, and may exchange tensors there
    (`modeling_radio.core.ranks`). No hook reads a number from the device in these calls, except in `scalars`: Python
    would wait for the device in every step. Checkpoints hold the `state_dict` of a hook that is a `torch.nn.Module`.

    Attributes:
        needs_examples: Whether `begin_step` gets the parts of the step. All of them are then in memory at once.
    """

    needs_examples: ClassVar[bool] = False

    def extend(self, student: nn.Module) -> nn.Module:
        """Return the module that is trained: the student, or a module that calls it.

        Such a module has the student as its attribute `student`, takes the same arguments, and adds outputs of further
        heads to `adaptors`. Its own parameters are trained, and neither averaged nor exported.
        """
        return student

    def last_dense_linears(self, teacher: str) -> list[nn.Linear]:
        """Return the last layers of further heads for a teacher's features: they follow its new standardization."""
        return []

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Begin a step.

        Args:
            step: Its number, from 0.
            examples: The parts of the step on this rank; empty unless a hook `needs_examples` or passes run at once.
        """

    def begin_pass(self, batch: PlannedBatch) -> None:
        """Begin the forward pass of a part; not called where passes run at the same time (`passes_at_once`)."""

    def terms(
        self, batch: PlannedBatch, example: Example, output: StudentOutput, losses_of: HeadLosses
    ) -> dict[str, LossTerm]:
        """Return further losses of a part by name, `KIND/HEAD`; they are added to the objective.

        Args:
            batch: The planned images.
            example: The images, and the teachers' outputs for them.
            output: The student's output for them, with all heads.
            losses_of: Compares a head with a teacher as the recipe's losses do.
        """
        return {}

    def weigh(self, batch: PlannedBatch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return the losses that get another weight in this part, times that weight but not the recipe's, by name."""
        return {}

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Take note of a part after its backward pass.

        Args:
            batch: The planned images.
            example: The images, and the teachers' outputs for them.
            losses: Scalars by name, without the recipe's factors; `"loss"` is the objective.
        """

    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """End the step after gradients are clipped, before the optimizer's step.

        Args:
            values: By name the losses of the step on this rank, summed over its parts.
            is_skipped: Whether something is not finite on any rank, so that the student's weights stay.
        """

    def scalars(self) -> dict[str, float]:
        """Return numbers for the log by name; asked in steps that are logged."""
        return {}
