"""What summaries are contrasted with: those of the whole step, of all ranks, and a bank of those before."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.ranks import of_all_ranks, rows_of_all_ranks
from training.losses.contrastive import CONTRASTIVE_LOSSES, centered
from training.recipe import Recipe, RecipeError
from training.targets.examples import Example
from training.teachers.base import TeacherShape
from training.views.batches import Batch


Image = tuple[int, int]
"""Number of its partition, and its row in that partition's step: the same however a step is split."""


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
        """The rows that are there by now, in no particular order."""
        return self.rows[: min(int(self.num_added), len(self.rows))]

    def mean_with(self, rows: Tensor) -> Tensor:
        """Return the mean of all rows that were ever added, and of some that are not yet."""
        return (self.total + rows.double().sum(0)) / (int(self.num_added) + len(rows))

    def add(self, rows: Tensor) -> None:
        """Put rows in place of the oldest ones; those that are not finite are left out."""
        rows = rows[torch.isfinite(rows).all(1)]
        self.total += rows.double().sum(0)
        first, size = int(self.num_added), len(self.rows)
        self.num_added += len(rows)
        if size:
            kept = torch.arange(first, first + len(rows), device=rows.device)[-size:]
            self.rows[kept % size] = rows[-size:]


class Contrasts(nn.Module):
    """The candidates of every teacher that has a summary; banks are part of the checkpoint.

    Args:
        recipe: Its section `contrastive` says how they are compared.
        teachers: By name.
        device: The student's.

    Raises:
        RecipeError: If no teacher has a summary that counts.
    """

    def __init__(self, recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> None:
        super().__init__()
        self._compare = CONTRASTIVE_LOSSES[recipe.contrastive.kind]
        self._partitions = {partition.name: number for number, partition in enumerate(recipe.partitions)}
        widths = {entry.name: teachers[entry.name].summary_dim for entry in recipe.teachers if entry.summary_weight > 0}
        size = recipe.contrastive.bank_size
        self.banks = nn.ModuleDict(
            {name: EmbeddingBank(size, width, device) for name, width in widths.items() if width is not None}
        )
        if not self.banks:
            raise RecipeError(
                f"`contrastive.weight` must be 0 where no teacher has a summary that counts, got "
                f"{recipe.contrastive.weight}. Add a teacher with a summary, or leave the section out."
            )
        self._rows: dict[str, Tensor] = {}
        self._places: dict[str, dict[Image, int]] = {}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin_step(self, parts: Sequence[tuple[Batch, Example]]) -> None:
        """Gather the teachers' summaries of a step, all of whose parts must be known; all ranks must take part."""
        own: dict[str, list[Image]] = {
            name: [image for batch, example in parts if name in example.targets for image in self._images(batch)]
            for name in self.banks
        }
        images = of_all_ranks(own)
        for name, bank in self._named_banks():
            summaries = [cast(Tensor, example.targets[name].summary) for _, example in parts if name in example.targets]
            rows = torch.cat([bank.rows.new_zeros(0, bank.rows.shape[1]), *(each.float() for each in summaries)])
            everywhere = [image for each in images for image in each[name]]
            order = sorted(range(len(everywhere)), key=everywhere.__getitem__)  # whatever the ranks and parts
            gathered = rows_of_all_ranks(F.normalize(rows, dim=-1), [len(each[name]) for each in images])
            self._rows[name] = gathered[order]
            self._places[name] = {everywhere[index]: place for place, index in enumerate(order)}
            self._means[name] = bank.mean_with(self._rows[name])

    def losses(self, name: str, batch: Batch, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the contrastive loss of each image of a pass, `(batch,)`.

        Args:
            name: The teacher.
            batch: A part of the step that began last.
            student: `(batch, C)`, the student's summaries.
            teacher: `(batch, C)`, the teacher's.
        """
        bank, mean = dict(self._named_banks())[name], self._means[name]
        candidates = centered(torch.cat([self._rows[name], bank.filled]), mean)
        places = torch.tensor([self._places[name][image] for image in self._images(batch)], device=student.device)
        return self._compare(centered(student, mean), centered(teacher, mean), candidates, places)

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the step's summaries into the banks."""
        for name, bank in self._named_banks():
            bank.add(self._rows.pop(name))

    def _images(self, batch: Batch) -> list[Image]:
        return [(self._partitions[batch.partition], row) for row in batch.rows]

    def _named_banks(self) -> list[tuple[str, EmbeddingBank]]:
        return [(name, cast(EmbeddingBank, bank)) for name, bank in self.banks.items()]


def build_contrasts(recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> Contrasts | None:
    """Return what summaries are contrasted with; None where `contrastive.weight` is 0."""
    return Contrasts(recipe, teachers, device) if recipe.contrastive.weight else None
