"""The contrastive loss: the student's summaries relate to those of other images as the teacher's do.

The other images are those of the step, on all ranks, and a bank of summaries of the steps before. All parts of a step
are held in memory at once, since each is compared with the images of all parts.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.core.ranks import of_all_ranks, rows_of_all_ranks
from modeling_radio.training.hooks.base import HeadLosses, StepHook
from modeling_radio.training.losses.terms import LossTerm, zero_term
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, TeacherRecipe
from modeling_radio.training.student.packing import StudentOutput
from modeling_radio.training.targets.examples import Example, Target
from modeling_radio.training.teachers.outputs import TeacherShape
from modeling_radio.training.views.plan import PlannedBatch


TEMPERATURE = 0.07
"""CRD's, https://arxiv.org/abs/1910.10699."""

ImageInStep = tuple[int, int]
"""Number of its partition, and its row in that partition's step: the same however a step is split."""


def relational_losses(student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """Return the divergence between the teacher's and the student's similarities to the same candidates.

    Near duplicates among the candidates are as near to the student as they are to the teacher.

    Args:
        student: `(batch, C)` of length 1, as from `centered`.
        teacher: `(batch, C)` of length 1, of the same images.
        candidates: `(candidates, C)` of length 1, the teacher's; those of the batch are among them.

    Returns:
        `(batch,)`, Kullback-Leibler divergences of softmaxes over the candidates.

    References:
        "CRD" of CLIP-KD, https://arxiv.org/abs/2307.12732
    """
    wanted = (teacher @ candidates.T / TEMPERATURE).log_softmax(1)
    predicted = (student @ candidates.T / TEMPERATURE).log_softmax(1)
    return F.kl_div(predicted, wanted, reduction="none", log_target=True).sum(1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return directions of length 1 relative to a mean direction: they spread out although summaries fill a cone.

    Args:
        embeddings: `(batch, C)` of any length.
        mean: `(C,)`, the mean of such embeddings at length 1.
    """
    return F.normalize(F.normalize(embeddings.float(), dim=-1) - mean.float(), dim=-1)


class EmbeddingBank(nn.Module):
    """The last summaries of one teacher at length 1, first in, first out, and the sum of all that were ever added.

    Args:
        size: Number of summaries to keep.
        num_channels: Width of a summary.
        device: Device of the bank.
    """

    rows: Tensor
    num_added: Tensor
    total: Tensor

    def __init__(self, size: int, num_channels: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, num_channels, device=device))
        self.register_buffer("num_added", torch.zeros((), dtype=torch.int64))  # on the CPU: it decides shapes
        self.register_buffer("total", torch.zeros(num_channels, dtype=torch.float64, device=device))

    @property
    def filled(self) -> Tensor:
        """The rows added so far and not yet replaced, `(num_filled, num_channels)`, in no particular order."""
        return self.rows[: min(int(self.num_added), len(self.rows))]

    def mean_with(self, rows: Tensor) -> Tensor:
        """Return the mean `(num_channels,)`, float64, of all rows ever added and of `(num_rows, num_channels)` more."""
        return (self.total + rows.double().sum(0)) / (int(self.num_added) + len(rows))

    def add(self, rows: Tensor) -> None:
        """Replace the oldest rows by new ones, `(num_rows, num_channels)`."""
        self.total += rows.double().sum(0)
        first, size = int(self.num_added), len(self.rows)
        self.num_added += len(rows)
        if size:
            kept = torch.arange(first, first + len(rows), device=rows.device)[-size:]
            self.rows[kept % size] = rows[-size:]


class SummaryContrastiveLoss(StepHook, nn.Module):
    """The contrastive loss of every teacher with a summary and a summary weight above 0; a checkpoint holds its banks.

    Attributes:
        teachers: Names of these teachers.

    Args:
        recipe: Its section `contrastive` has the size of the banks.
        teachers: By name.
        device: The student's.

    Raises:
        RecipeError: If there is no such teacher.
    """

    needs_examples: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> None:
        super().__init__()
        self._partitions = {partition.name: number for number, partition in enumerate(recipe.partitions)}
        widths = {entry.name: teachers[entry.name].summary_dim for entry in recipe.teachers if entry.summary_weight > 0}
        size = recipe.contrastive.bank_size
        self.banks = nn.ModuleDict(
            {name: EmbeddingBank(size, width, device) for name, width in widths.items() if width is not None}
        )
        if not self.banks:
            raise RecipeError(
                "`contrastive.weight` must be 0 where no teacher has a summary that counts, got "
                f"{recipe.contrastive.weight}. Add a teacher with a summary, or leave the section out."
            )
        self.teachers = list(self.banks)
        self._entries = [entry for entry in recipe.teachers if entry.name in self.teachers]
        self._weight = recipe.contrastive.weight
        self._step: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Gather the teachers' summaries of all parts of a step; all ranks must take part."""
        images, rows = dict[str, list[ImageInStep]](), dict[str, Tensor]()
        for name in self.teachers:
            own = [(batch, example.targets[name].summary) for batch, example in examples if name in example.targets]
            images[name] = [(self._partitions[batch.partition], row) for batch, _ in own for row in batch.rows]
            none = self._bank(name).rows[:0]
            rows[name] = F.normalize(torch.cat([none, *(cast(Tensor, each).float() for _, each in own)]), dim=-1)
        self._step = gather_step(images, rows)
        self._means = {name: self._bank(name).mean_with(self._step[name]) for name in self.teachers}

    def terms(
        self, batch: PlannedBatch, example: Example, output: StudentOutput, losses_of: HeadLosses
    ) -> dict[str, LossTerm]:
        """Return the loss of each teacher."""
        return {f"contrastive/{entry.name}": self._term(entry, example, output) for entry in self._entries}

    def _term(self, entry: TeacherRecipe, example: Example, output: StudentOutput) -> LossTerm:
        summary, target = output.summaries[entry.name], example.targets.get(entry.name)
        if target is None or summary is None:
            return zero_term(output.features[entry.name], "summary")
        value = self.losses(entry.name, summary, target).mean()
        return LossTerm(self._weight * entry.summary_weight, value, "summary")

    def losses(self, name: str, summary: Tensor, target: Target) -> Tensor:
        """Return the loss of each image of a batch, `(batch,)`.

        Args:
            name: The teacher.
            summary: The student's, `(batch, summary_dim)`, for a part of the step that began last.
            target: The teacher's output for it.
        """
        mean = self._means[name]
        student, teacher = (centered(each, mean) for each in (summary, cast(Tensor, target.summary)))
        candidates = torch.cat([self._step[name], self._bank(name).filled])
        return relational_losses(student, teacher, centered(candidates, mean))

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Move the step's summaries into the banks, unless the step is skipped."""
        for name in () if is_skipped else self.teachers:
            self._bank(name).add(self._step.pop(name))

    def _bank(self, name: str) -> EmbeddingBank:
        return cast(EmbeddingBank, self.banks[name])


def gather_step(images: Mapping[str, Sequence[ImageInStep]], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all ranks by name, sorted by image: no split of a step changes their order.

    Args:
        images: This rank's images by name. All ranks must take part.
        rows: By name `(images, C)`, one row for each image, without gradient.
    """
    everywhere = of_all_ranks(dict(images))
    step: dict[str, Tensor] = {}
    for name, own in rows.items():
        gathered = rows_of_all_ranks(own, [len(each[name]) for each in everywhere])
        order = [image for each in everywhere for image in each[name]]
        step[name] = gathered[sorted(range(len(order)), key=order.__getitem__)]
    return step


def build_contrastive(
    recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device
) -> SummaryContrastiveLoss | None:
    """Return the contrastive loss; None if `contrastive.weight` is 0.

    Raises:
        RecipeError: If no teacher takes part.
    """
    return SummaryContrastiveLoss(recipe, teachers, device) if recipe.contrastive.weight else None
