"""What contrastive losses have in common: a step's rows of all ranks, in an order that no split of the step changes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from foundation.ranks import of_all_ranks, rows_of_all_ranks
from training.recipe import RecipeError, TeacherRecipe
from training.targets.examples import Example, Target
from training.views.batches import Batch


Image = tuple[int, int]
"""Number of its partition, and its row in that partition's step: the same however a step is split."""


class Answer(Protocol):
    """What the student's head of a teacher answers, as `training.student.packing.HeadAnswer`."""

    @property
    def summary(self) -> Tensor | None: ...

    @property
    def features(self) -> Sequence[Tensor]: ...


class Contrasts(nn.Module):
    """Base of what the student's answers are contrasted with; what must survive a restart are its buffers.

    Attributes:
        kind: Its losses are named `KIND/TEACHER`.
        teachers: Names of those that are contrasted.
    """

    kind: str
    teachers: Sequence[str]

    @abstractmethod
    def weight(self, entry: TeacherRecipe) -> float:
        """Return the teacher's own factor of the loss."""

    @abstractmethod
    def begin_step(self, parts: Sequence[tuple[Batch, Example]]) -> None:
        """See a step's targets, all of whose parts must be known; all ranks must take part."""

    @abstractmethod
    def losses(self, name: str, batch: Batch, answer: Answer, target: Target) -> Tensor:
        """Return the loss of each image of a pass, `(batch,)`.

        Args:
            name: The teacher.
            batch: A part of the step that began last.
            answer: The student's.
            target: The teacher's.
        """

    @abstractmethod
    def end_step(self) -> None:
        """Keep what a later step needs; not called after a step with numbers that are not finite, which is skipped."""


class StepRows(NamedTuple):
    """Rows of a whole step.

    Attributes:
        rows: `(rows, C)`, one image after the other.
        places: By image which row is its first.
    """

    rows: Tensor
    places: dict[Image, int]


def gather_step(images: Mapping[str, Sequence[tuple[Image, int]]], rows: Mapping[str, Tensor]) -> dict[str, StepRows]:
    """Return the rows of all ranks by name, sorted by image; all ranks must take part.

    Args:
        images: By name this rank's images, and how many rows each has.
        rows: By name `(rows, C)`, those of these images one after the other, without gradient.
    """
    everywhere = of_all_ranks(dict(images))
    step: dict[str, StepRows] = {}
    for name, own in rows.items():
        gathered = rows_of_all_ranks(own, [sum(count for _, count in each[name]) for each in everywhere])
        blocks = [block for each in everywhere for block in each[name]]
        starts = list(accumulate((count for _, count in blocks), initial=0))
        order = sorted(range(len(blocks)), key=lambda number: blocks[number][0])
        index = [row for number in order for row in range(starts[number], starts[number + 1])]
        firsts = accumulate((blocks[number][1] for number in order), initial=0)
        step[name] = StepRows(gathered[index], {blocks[n][0]: first for n, first in zip(order, firsts, strict=False)})
    return step


def refuse_nothing_to_contrast(weight: float, what: str) -> RecipeError:
    """Return the error of a contrastive loss that no teacher takes part in."""
    return RecipeError(
        f"`contrastive.weight` must be 0 where no teacher has {what} that counts, got {weight}. Add a teacher with "
        f"{what}, or leave the section out."
    )
