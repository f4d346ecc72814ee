"""Weights of teachers that are shown losses which a test writes down, without a run."""

from collections.abc import Callable, Mapping

import torch
from small_recipes import small_recipe
from torch import Tensor

from training.balancing.base import TeacherWeights
from training.balancing.registry import METHODS
from training.recipe import Recipe
from training.views.batches import Batch
from training.views.shapes import Grid, Shape


ROLES = {"a": "basic", "b": "semantic", "c": "task"}
HAS_SUMMARY = {"a": True, "b": True, "c": False}
NAMES = ("features/a", "features/b", "features/c", "summary/a", "summary/b")
CPU = torch.device("cpu")

Losses = Callable[[int], Mapping[str, float]]


def recipe_of(method: str, num_steps: int = 12, **balancing: int) -> Recipe:
    recipe = small_recipe(*ROLES, schedule={"num_steps": num_steps, "warmup_steps": 2})
    teachers = [entry.replace(role=ROLES[entry.name]) for entry in recipe.teachers]
    return recipe.replace(teachers=teachers, balancing={"method": method, **balancing})


def weights_of(method: str, **balancing: int) -> TeacherWeights:
    return METHODS[method](recipe_of(method, **balancing), HAS_SUMMARY, CPU)


def batch_of(step: int, rows: tuple[int, ...] = (0, 1), total: int = 2, teachers: str = "abc") -> Batch:
    shapes = (Shape(Grid(2, 2), Grid(2, 2)),) * len(rows)
    return Batch(0, step, "low", shapes, rows, rows, (4,) * total, 1.0, tuple(teachers))


def see(weights: TeacherWeights, step: int, losses: Mapping[str, float]) -> None:
    """One step, in one pass."""
    weights.begin_step(step)
    weights.observe(batch_of(step), {name: torch.tensor(loss) for name, loss in losses.items()})
    weights.end_step()


def drive(weights: TeacherWeights, losses: Losses, steps: range) -> list[dict[str, float]]:
    """Show losses over some steps; return the weights of each."""
    rows = []
    for step in steps:
        see(weights, step, losses(step))
        rows.append(weights.scalars())
    return rows


def uneven(step: int) -> dict[str, float]:
    """Losses that fall at different speeds."""
    return {name: 2.0 * (0.95 - 0.1 * place) ** step for place, name in enumerate(NAMES)}


def times(factor: float, name: str, losses: Losses) -> Losses:
    return lambda step: {own: value * (factor if own == name else 1) for own, value in losses(step).items()}


def values(row: Mapping[str, float]) -> Tensor:
    return torch.tensor(list(row.values()), dtype=torch.float64)
