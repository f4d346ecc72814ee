"""What dense features are contrasted with: cells of the same image and of the step's others, on all ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.contrastive import cell_losses
from training.recipe import Recipe, TeacherRecipe
from training.targets.contrasts.base import Answer, Contrasts, Image, StepRows, gather_step, refuse_nothing_to_contrast
from training.targets.examples import Example, Target
from training.teachers.answers import TeacherShape
from training.views.batches import Batch
from training.views.shapes import Grid


CELLS_PER_IMAGE = 16
"""Cells of an image that are contrasted in a step, at most: 1,024 of 64 images. Our choice."""

Standardize = Callable[[str, Tensor], Tensor]


class Cells(NamedTuple):
    """Some cells of a teacher's map of each image.

    Attributes:
        index: `(images, cells)`, their places in the map, row by row.
        centers: `(images, cells, 2)`, where the student sees them: rows and columns, its crop from 0 to 1.
        is_seen: `(images, cells)`, whether its crop shows them; others are not used.
    """

    index: Tensor
    centers: Tensor
    is_seen: Tensor


class CellContrasts(Contrasts):
    """The candidates of every teacher with a dense loss: standardized features of cells that the student sees as well.

    The samples are cells of the teacher's own map, spread evenly over what both crops show from a random start; the
    student's answer is read where they are. Nothing is kept from one step to the next: a step has many cells, and a
    refit of PHI-S turns the space that earlier ones would be in.

    Args:
        recipe: Whose dense losses count.
        teachers: By name.
        standardize: Returns a teacher's standardized features.

    Raises:
        RecipeError: If no teacher has a dense loss.
    """

    kind = "dense_contrastive"

    def __init__(self, recipe: Recipe, teachers: Mapping[str, TeacherShape], standardize: Standardize) -> None:
        super().__init__()
        self._standardize = standardize
        self._partitions = {partition.name: number for number, partition in enumerate(recipe.partitions)}
        self._widths = {e.name: teachers[e.name].feature_dim for e in recipe.teachers if e.feature_weight > 0}
        if not self._widths:
            raise refuse_nothing_to_contrast(recipe.contrastive.weight, "a dense loss")
        self.teachers = list(self._widths)
        self._step: dict[str, StepRows] = {}

    def weight(self, entry: TeacherRecipe) -> float:
        """Return the factor of its dense loss."""
        return entry.feature_weight

    @torch.no_grad()
    def begin_step(self, parts: Sequence[tuple[Batch, Example]]) -> None:
        """Gather the cells of a step; rows of 0 stand for those that the student does not see."""
        images, rows = dict[str, list[tuple[Image, int]]](), dict[str, Tensor]()
        for name, width in self._widths.items():
            own = [(batch, example.targets[name]) for batch, example in parts if name in example.targets]
            device = parts[0][1].pixel_values[0].device
            gathered, images[name] = [torch.zeros(0, width, device=device)], []
            for batch, target in own:
                for group, features, cells in _groups(name, batch, target):
                    taken = self._standardize(name, features).flatten(2).take_along_dim(cells.index[:, None], 2)
                    tokens = F.normalize(taken.movedim(1, 2).float(), dim=-1)  # (images, C, cells) -> rows of cells
                    gathered.append((tokens * cells.is_seen[..., None]).flatten(0, 1))
                    images[name] += [(self._image(batch, row), cells.index.shape[1]) for row in batch.rows[group]]
            rows[name] = torch.cat(gathered)
        self._step = gather_step(images, rows)

    def losses(self, name: str, batch: Batch, answer: Answer, target: Target) -> Tensor:
        """Return the mean loss of each image's cells, `(batch,)`; 0 for an image of which the student sees none."""
        step, losses = self._step[name], []
        for (group, _, cells), features in zip(_groups(name, batch, target), answer.features, strict=True):
            firsts = torch.tensor([step.places[self._image(batch, row)] for row in batch.rows[group]])
            places = firsts[:, None] + torch.arange(cells.index.shape[1])
            read = read_at(features.float(), cells.centers)
            losses.append(cell_losses(read, step.rows, places.to(read.device), cells.is_seen))
        return torch.cat(losses)

    def end_step(self) -> None:
        """Forget the step."""
        self._step = {}

    def _image(self, batch: Batch, row: int) -> Image:
        return self._partitions[batch.partition], row


def _groups(name: str, batch: Batch, target: Target) -> list[tuple[slice, Tensor, Cells]]:
    """Return for each group of a batch which of it they are, the teacher's features and the cells that are drawn."""
    starts = batch.uniform(f"dense_contrastive/{name}")
    shifts = [None] * len(target.features) if target.shifts is None else target.shifts
    return [
        (group, features, draw_cells(features, shape.grid, shift, starts[group].to(features.device)))
        for (shape, group), features, shift in zip(batch.groups, target.features, shifts, strict=True)
    ]


def draw_cells(features: Tensor, grid: Grid, shift: Tensor | None, starts: Tensor) -> Cells:
    """Choose cells of the teacher's maps, evenly spread over those whose middles the student sees.

    Args:
        features: `(images, C, rows, cols)`, the teacher's.
        grid: The student's patches.
        shift: `(images, 2)` in these patches: the teacher's crop minus the student's; None for the same crop.
        starts: `(images,)` in [0, 1), a random number of each image, which decides.
    """
    centers, is_seen = [], []
    for axis, (length, patches) in enumerate(zip(features.shape[2:], grid, strict=True)):
        own = (torch.arange(length, device=features.device) + 0.5) / length
        middle = own[None] + (0 if shift is None else shift[:, axis, None] / patches)
        centers.append(middle.expand(len(features), length))
        is_seen.append((centers[axis] > 0) & (centers[axis] < 1))
    counts = [each.sum(1) for each in is_seen]  # what both see is a rectangle
    firsts = [each.int().argmax(1) for each in is_seen]
    num_seen = (counts[0] * counts[1])[:, None]
    num_cells = min(CELLS_PER_IMAGE, features[0, 0].numel())
    numbers = torch.arange(num_cells, device=features.device)
    # Steps between the numbers of neighbors are 1 or more, so that no cell is taken twice.
    stride = num_seen.double() / num_seen.clamp(1, num_cells)
    number = ((numbers + starts.double()[:, None]) * stride).long()
    row = firsts[0][:, None] + number // counts[1][:, None].clamp(min=1)
    col = firsts[1][:, None] + number % counts[1][:, None].clamp(min=1)
    row, col = row.clamp(max=features.shape[2] - 1), col.clamp(max=features.shape[3] - 1)
    middles = torch.stack([centers[0].gather(1, row), centers[1].gather(1, col)], dim=-1)
    return Cells(row * features.shape[3] + col, middles, numbers < num_seen)


def read_at(features: Tensor, centers: Tensor) -> Tensor:
    """Return maps `(images, C, rows, cols)`, bilinear, at places `(images, cells, 2)`: `(images, cells, C)`."""
    places = 2 * centers.flip(-1).to(features.dtype) - 1  # column first, from -1 to 1
    sampled = F.grid_sample(features, places[:, :, None], padding_mode="border", align_corners=False)
    return sampled[..., 0].movedim(1, 2)
