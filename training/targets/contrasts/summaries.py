"""What summaries are contrasted with: those of the whole step, of all ranks, and a bank of those before."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.losses.contrastive import SUMMARY_CONTRASTS, centered
from training.recipe import Recipe, TeacherRecipe
from training.targets.contrasts.base import Answer, Contrasts, Image, StepRows, gather_step, refuse_nothing_to_contrast
from training.targets.examples import Example, Target
from training.teachers.answers import TeacherShape
from training.views.batches import Batch


class EmbeddingBank(nn.Module):
    """The last summaries of one teacher at length 1, first in, first out, and the mean of all there ever were.

    Args:
        size: How many are kept.
        num_channels: Width of a summary.
        device: Where they are.
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
        """The rows that are there by now, `(num_filled, num_channels)`, in no particular order."""
        return self.rows[: min(int(self.num_added), len(self.rows))]

    def mean_with(self, rows: Tensor) -> Tensor:
        """Return the mean `(num_channels,)`, float64, of all rows ever added and of `(num_rows, num_channels)` more."""
        return (self.total + rows.double().sum(0)) / (int(self.num_added) + len(rows))

    def add(self, rows: Tensor) -> None:
        """Put rows `(num_rows, num_channels)` in place of the oldest ones."""
        self.total += rows.double().sum(0)
        first, size = int(self.num_added), len(self.rows)
        self.num_added += len(rows)
        if size:
            kept = torch.arange(first, first + len(rows), device=rows.device)[-size:]
            self.rows[kept % size] = rows[-size:]


class SummaryContrasts(Contrasts):
    """The candidates of every teacher that has a summary; banks are part of the checkpoint.

    Args:
        recipe: Its section `contrastive` says how they are compared.
        teachers: By name.
        device: The student's.

    Raises:
        RecipeError: If no teacher has a summary that counts.
    """

    kind = "contrastive"

    def __init__(self, recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> None:
        super().__init__()
        self._compare = SUMMARY_CONTRASTS[recipe.contrastive.kind]
        self._partitions = {partition.name: number for number, partition in enumerate(recipe.partitions)}
        widths = {entry.name: teachers[entry.name].summary_dim for entry in recipe.teachers if entry.summary_weight > 0}
        size = recipe.contrastive.bank_size
        self.banks = nn.ModuleDict(
            {name: EmbeddingBank(size, width, device) for name, width in widths.items() if width is not None}
        )
        if not self.banks:
            raise refuse_nothing_to_contrast(recipe.contrastive.weight, "a summary")
        self.teachers = list(self.banks)
        self._step: dict[str, StepRows] = {}
        self._means: dict[str, Tensor] = {}

    def weight(self, entry: TeacherRecipe) -> float:
        """Return the factor of its summary loss."""
        return entry.summary_weight

    @torch.no_grad()
    def begin_step(self, parts: Sequence[tuple[Batch, Example]]) -> None:
        """Gather the teachers' summaries of a step."""
        images, rows = dict[str, list[tuple[Image, int]]](), dict[str, Tensor]()
        for name, bank in self._named_banks():
            own = [(batch, example.targets[name].summary) for batch, example in parts if name in example.targets]
            images[name] = [(image, 1) for batch, _ in own for image in self._images(batch)]
            none = bank.rows.new_zeros(0, bank.rows.shape[1])
            rows[name] = F.normalize(torch.cat([none, *(cast(Tensor, each).float() for _, each in own)]), dim=-1)
        self._step = gather_step(images, rows)
        self._means = {name: bank.mean_with(self._step[name].rows) for name, bank in self._named_banks()}

    def losses(self, name: str, batch: Batch, answer: Answer, target: Target) -> Tensor:
        """Return the contrastive loss of each image's summary, `(batch,)`."""
        bank, mean, step = dict(self._named_banks())[name], self._means[name], self._step[name]
        student, teacher = (centered(cast(Tensor, each.summary), mean) for each in (answer, target))
        candidates = centered(torch.cat([step.rows, bank.filled]), mean)
        places = torch.tensor([step.places[image] for image in self._images(batch)], device=student.device)
        return self._compare(student, teacher, candidates, places)

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the step's summaries into the banks."""
        for name, bank in self._named_banks():
            bank.add(self._step.pop(name).rows)

    def _images(self, batch: Batch) -> list[Image]:
        return [(self._partitions[batch.partition], row) for row in batch.rows]

    def _named_banks(self) -> list[tuple[str, EmbeddingBank]]:
        return [(name, cast(EmbeddingBank, bank)) for name, bank in self.banks.items()]
