"""The relational loss: where an image lies among others, as the teacher's summaries say.

The others are the images of the step, on all ranks, and a bank of those of the steps before. All parts of a step are
held in memory at once, since each is compared with the images of all.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.ranks import of_all_ranks, rows_of_all_ranks
from training.recipe import Recipe, RecipeError
from training.student.packing import HeadAnswer
from training.targets.examples import Example, Target
from training.teachers.outputs import TeacherShape
from training.views.plan import Batch


TEMPERATURE = 0.07
"""CRD's, https://arxiv.org/abs/1910.10699."""

Image = tuple[int, int]
"""Number of its partition, and its row in that partition's step: the same however a step is split."""


def relational_losses(student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """Return the divergence between the teacher's and the student's similarities to the same candidates.

    Near duplicates among the candidates are as near to the student as they are to the teacher.

    Args:
        student: `(batch, C)` of length 1, as `centered` gives them.
        teacher: `(batch, C)`, likewise, of the same images.
        candidates: `(candidates, C)`, the teacher's, likewise; those of the batch among them.

    Returns:
        `(batch,)`, Kullback-Leibler divergences of softmaxes over the candidates.

    References:
        "CRD" of CLIP-KD, https://arxiv.org/abs/2307.12732
    """
    wanted = (teacher @ candidates.T / TEMPERATURE).log_softmax(1)
    answered = (student @ candidates.T / TEMPERATURE).log_softmax(1)
    return F.kl_div(answered, wanted, reduction="none", log_target=True).sum(1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return directions seen from a mean direction: of length 1, spread all around where summaries fill a cone.

    Args:
        embeddings: `(batch, C)` of any length.
        mean: `(C,)`, the mean of such embeddings at length 1.
    """
    return F.normalize(F.normalize(embeddings.float(), dim=-1) - mean.float(), dim=-1)


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


class SummaryContrasts(nn.Module):
    """The candidates of every teacher that has a summary that counts; their banks are part of the checkpoint.

    Attributes:
        teachers: Names of these teachers.

    Args:
        recipe: Its section `contrastive` says how many are kept.
        teachers: By name.
        device: The student's.

    Raises:
        RecipeError: If no teacher has a summary that counts.
    """

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
        self._step: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin_step(self, parts: Sequence[tuple[Batch, Example]]) -> None:
        """Gather the teachers' summaries of a step, all of whose parts must be known; all ranks must take part."""
        images, rows = dict[str, list[Image]](), dict[str, Tensor]()
        for name, bank in self._named_banks():
            own = [(batch, example.targets[name].summary) for batch, example in parts if name in example.targets]
            images[name] = [image for batch, _ in own for image in self._images(batch)]
            none = bank.rows.new_zeros(0, bank.rows.shape[1])
            rows[name] = F.normalize(torch.cat([none, *(cast(Tensor, each).float() for _, each in own)]), dim=-1)
        self._step = gather_step(images, rows)
        self._means = {name: bank.mean_with(self._step[name]) for name, bank in self._named_banks()}

    def losses(self, name: str, answer: HeadAnswer, target: Target) -> Tensor:
        """Return the loss of each image of a pass, `(batch,)`.

        Args:
            name: The teacher.
            answer: The student's, for a part of the step that began last.
            target: The teacher's.
        """
        bank, mean = cast(EmbeddingBank, self.banks[name]), self._means[name]
        student, teacher = (centered(cast(Tensor, each.summary), mean) for each in (answer, target))
        return relational_losses(student, teacher, centered(torch.cat([self._step[name], bank.filled]), mean))

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the step's summaries into the banks; not called after a step that is skipped as not finite."""
        for name, bank in self._named_banks():
            bank.add(self._step.pop(name))

    def _images(self, batch: Batch) -> list[Image]:
        return [(self._partitions[batch.partition], row) for row in batch.rows]

    def _named_banks(self) -> list[tuple[str, EmbeddingBank]]:
        return [(name, cast(EmbeddingBank, bank)) for name, bank in self.banks.items()]


def gather_step(images: Mapping[str, Sequence[Image]], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all ranks by name, sorted by image, so that no split of a step changes their order.

    Args:
        images: By name this rank's images. All ranks must take part.
        rows: By name `(images, C)`, one for each of them, without gradient.
    """
    everywhere = of_all_ranks(dict(images))
    step: dict[str, Tensor] = {}
    for name, own in rows.items():
        gathered = rows_of_all_ranks(own, [len(each[name]) for each in everywhere])
        order = [image for each in everywhere for image in each[name]]
        step[name] = gathered[sorted(range(len(order)), key=order.__getitem__)]
    return step


def build_contrasts(
    recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device
) -> SummaryContrasts | None:
    """Return what the student's answers are contrasted with; None where `contrastive.weight` is 0.

    Raises:
        RecipeError: If no teacher takes part.
    """
    return SummaryContrasts(recipe, teachers, device) if recipe.contrastive.weight else None
