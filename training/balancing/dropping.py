"""Weights by image: `teacher_dropping`."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foundation.ranks import sum_over_ranks
from training.balancing.base import GROUPS, LossTerm, TeacherWeights, groups_of, teacher_of
from training.recipe import Recipe
from training.views.batches import Batch


DROP_PROBABILITY = 0.5
"""UNIC's, https://arxiv.org/abs/2408.05088."""


class TeacherDropping(TeacherWeights):
    """Each image keeps the teacher with the largest loss and drops each other one half of the time, in each group.

    What an image keeps is scaled up so that all images count alike. Draws follow from the seed and the step: nothing is
    saved, and the period has no meaning here. What is logged is a teacher's mean factor over the images of a step.

    Args:
        recipe: The recipe.
        has_summary: By teacher whether it has a summary.
        device: Of the losses.

    References:
        UNIC, ECCV 2024, https://arxiv.org/abs/2408.05088
    """

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe)
        self.groups = groups_of(recipe, has_summary)
        self.names = [f"{group}/{name}" for group, names in self.groups.items() for name in names]
        self._device, self._step = device, 0
        self._means = torch.ones(len(self.names), device=device)
        # By partition and rows, because passes may run at the same time and end in any order.
        self._noted: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def begin_step(self, step: int) -> None:
        """Note the step, whose place on the ramp decides how much images differ."""
        self._step = step

    def weigh(self, batch: Batch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Return the losses with a factor for each image."""
        weighted = super().weigh(batch, terms)
        ramp = self.ramp(self._step)
        if ramp == 0:
            return weighted
        notes = torch.zeros(2, len(self.names), device=self._device)
        for group, teachers in self.groups.items():
            seen = [name for name in teachers if name in batch.teachers]
            own = {name: terms[name] for name in terms if _group_of(name) == group and teacher_of(name) in seen}
            if not own:
                continue
            losses = {name: term.by_image() for name, term in own.items()}
            weights = {name: term.weight for name, term in own.items()}
            factors = 1 + ramp * (self._kept(batch, group, seen, losses, weights) - 1)
            for name, each in losses.items():
                weighted[name] = own[name].reduce(each * factors[:, seen.index(teacher_of(name))].to(each.dtype))
            places = [self.names.index(f"{group}/{name}") for name in seen]
            notes[0, places] = factors.mean(0) * len(batch)
            notes[1, places] = float(len(batch))
        self._noted[batch.partition, batch.rows] = notes
        return weighted

    @torch.no_grad()
    def end_step(self) -> None:
        """Note the mean factors of the step over all ranks."""
        notes = [self._noted[key] for key in sorted(self._noted)]
        total, count = sum_over_ranks(
            torch.stack([torch.zeros(2, len(self.names), device=self._device), *notes]).sum(0)
        )
        self._means = torch.where(count > 0, total / count, 1.0)
        self._noted = {}

    def scalars(self) -> dict[str, float]:
        """Return the mean factors of the last step."""
        return {f"weight/{name}": value for name, value in zip(self.names, self._means.tolist(), strict=True)}

    @torch.no_grad()
    def _kept(
        self,
        batch: Batch,
        group: str,
        seen: Sequence[str],
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
    ) -> Tensor:
        """Return what each image multiplies its losses by, `(images, teachers)` with a mean of 1 in each row."""
        columns = [
            torch.stack([weights[key] * losses[key].float() for key in losses if teacher_of(key) == name]).sum(0)
            for name in seen
        ]
        total = torch.stack(columns, dim=1)
        places = [place for place, entry in enumerate(self.recipe.teachers) if entry.name in seen]
        draws = batch.uniform(f"teacher_dropping/{group}", len(self.recipe.teachers))[:, places].to(total.device)
        is_kept = (draws >= DROP_PROBABILITY) | (total == total.max(dim=1, keepdim=True).values)
        return len(seen) * is_kept / is_kept.sum(1, keepdim=True)


def _group_of(name: str) -> str:
    return GROUPS[name.partition("/")[0]]
