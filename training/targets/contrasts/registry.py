"""Which contrastive loss a recipe asks for."""

from collections.abc import Mapping

import torch

from training.recipe import Recipe
from training.targets.contrasts.base import Contrasts
from training.targets.contrasts.cells import CellContrasts
from training.targets.contrasts.summaries import SummaryContrasts
from training.targets.statistics import TeacherStatistics
from training.teachers.answers import TeacherShape


def build_contrasts(
    recipe: Recipe, teachers: Mapping[str, TeacherShape], statistics: TeacherStatistics, device: torch.device
) -> Contrasts | None:
    """Return what the student's answers are contrasted with; None where `contrastive.weight` is 0.

    Args:
        recipe: Its section `contrastive` says how.
        teachers: By name.
        statistics: Standardize the teachers' dense features.
        device: The student's.

    Raises:
        RecipeError: If no teacher takes part.
    """
    if not recipe.contrastive.weight:
        return None
    if recipe.contrastive.kind == "dense":
        return CellContrasts(recipe, teachers, statistics.standardize)
    return SummaryContrasts(recipe, teachers, device)
