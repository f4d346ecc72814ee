"""Which method weighs the teachers, by its name in the recipe."""

from collections.abc import Callable, Mapping

import torch

from training.balancing.base import TeacherWeights
from training.balancing.dropping import TeacherDropping
from training.balancing.gradients import GradNorm
from training.balancing.progress import AdaptiveWeights, DynamicWeightAverage
from training.balancing.scale import AdaLoss, UncertaintyWeights
from training.recipe import Recipe, RecipeError
from training.teachers.answers import TeacherShape


METHODS: dict[str, Callable[[Recipe, Mapping[str, bool], torch.device], TeacherWeights]] = {
    "fixed": lambda recipe, *_: TeacherWeights(recipe),
    "adaptive": AdaptiveWeights,
    "ada_loss": AdaLoss,
    "dwa": DynamicWeightAverage,
    "gradnorm": GradNorm,
    "uncertainty": UncertaintyWeights,
    "teacher_dropping": TeacherDropping,
}


def build_weights(recipe: Recipe, teachers: Mapping[str, TeacherShape], device: torch.device) -> TeacherWeights:
    """Return what weighs the teachers' losses.

    Args:
        recipe: Its section `balancing` says how.
        teachers: By name.
        device: The student's.

    Raises:
        RecipeError: If the method needs roles, and a teacher has none.
    """
    has_summary = {name: teacher.summary_dim is not None for name, teacher in teachers.items()}
    return METHODS[recipe.balancing.method](recipe, has_summary, device)


def check_can_shard(recipe: Recipe) -> None:
    """Refuse what cannot be had where the student is sharded over ranks.

    Raises:
        RecipeError: If gradients of single losses are needed: FSDP takes the first pass back for the step's only one.
    """
    if recipe.balancing.method == "gradnorm":
        raise RecipeError(
            "`balancing.method` must be another than 'gradnorm' with FSDP, got 'gradnorm'. Copy the student to every "
            "rank (DDP), or choose for example 'adaptive'."
        )
