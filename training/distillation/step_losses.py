"""One loss of a batch: the student compared with every teacher and with its moving average, weighted and summed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.losses.alignment import align_to_teacher
from training.losses.features import FEATURE_LOSSES
from training.losses.mesa import mesa_losses
from training.losses.mixtures import chosen_loss
from training.losses.reductions import reduce_images
from training.losses.summaries import SUMMARY_LOSSES
from training.recipe import LossRecipe, Recipe
from training.student.packing import HeadAnswer, StudentAnswer
from training.targets.examples import Example, Target
from training.targets.statistics import TeacherStatistics
from training.views.batches import Batch


def compare_with_teachers(
    recipe: Recipe, statistics: TeacherStatistics, batch: Batch, example: Example, student: StudentAnswer
) -> dict[str, Tensor]:
    """Return the student's losses by name, `"loss"` being the weighted sum.

    Args:
        recipe: Says which losses, and their weights.
        statistics: Of the teachers.
        batch: What was planned.
        example: What the teachers answered.
        student: What the student answers.
    """
    losses: dict[str, Tensor] = {}
    total = student.features[0].new_zeros((), dtype=torch.float32)
    for entry in recipe.teachers:
        features, summary = _teacher_losses(recipe.loss, statistics, entry.name, batch, example, student)
        losses[f"features/{entry.name}"] = features
        total = total + entry.feature_weight * features
        if summary is not None:
            losses[f"summary/{entry.name}"] = summary
            total = total + entry.summary_weight * summary
    return {"loss": total, **losses}


def compare_with_average(student: Sequence[Tensor], average: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
    """Return the MESA loss of a batch, the mean of `mesa_losses` over images; arguments are by groups of images."""
    return torch.cat([mesa_losses(*each) for each in zip(student, average, shifts, strict=True)]).mean()


def _teacher_losses(
    recipe: LossRecipe,
    statistics: TeacherStatistics,
    name: str,
    batch: Batch,
    example: Example,
    student: StudentAnswer,
) -> tuple[Tensor, Tensor | None]:
    """Return a teacher's dense loss and, if it has a summary, its summary loss."""
    answer, target = student.adaptors[name], example.targets.get(name)
    if target is None:
        # Not a teacher of this partition. Its head still gets a gradient, of zero: ranks wait for each other's.
        nothing = torch.stack([0.0 * features.float().mean() for features in answer.features]).sum()
        return nothing, None if answer.summary is None else 0.0 * answer.summary.float().mean()
    features = _feature_loss(recipe, statistics, name, batch, answer, target)
    if answer.summary is None or target.summary is None:
        return features, None
    compare = chosen_loss(recipe.summary, SUMMARY_LOSSES)
    return features, compare(answer.summary, target.summary, statistics.dispersion(name))


def _feature_loss(
    recipe: LossRecipe, statistics: TeacherStatistics, name: str, batch: Batch, answer: HeadAnswer, target: Target
) -> Tensor:
    compare = chosen_loss(recipe.features, FEATURE_LOSSES)
    losses, tokens = [], []
    shifts = [None] * len(target.features) if target.shifts is None else target.shifts
    groups = zip(batch.groups, answer.features, target.features, shifts, strict=True)
    for (shape, _), ours, theirs, shift in groups:
        maps = align_to_teacher(ours, statistics.standardize(name, theirs), shift)
        losses.append(compare(*maps))
        tokens.append(maps.valid.float().mean((1, 2)) * shape.grid.num_tokens)
    return reduce_images(torch.cat(losses), torch.cat(tokens), batch.all_tokens, recipe.reduction)
