"""Optimizers by name."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from training.distillation.optimizers.groups import parameter_groups
from training.distillation.optimizers.lamb import Lamb
from training.distillation.optimizers.muon import Muon
from training.recipe import OptimizerRecipe


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, matrix_dtype: torch.dtype = torch.float32) -> Optimizer:
    """Return the optimizer that the recipe names, over all parameters of a student.

    Each counts the steps of each parameter, so that bias correction starts when the parameter does.

    Args:
        model: The student, before it is distributed.
        recipe: Its settings.
        matrix_dtype: What Muon makes matrices orthogonal in; its momenta and the weights stay as they are.
    """
    return OPTIMIZERS[recipe.name](model, recipe, matrix_dtype)


def _adamw(model: nn.Module, recipe: OptimizerRecipe, _: torch.dtype) -> Optimizer:
    groups = parameter_groups(model, recipe.weight_decay)
    return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)


def _lamb(model: nn.Module, recipe: OptimizerRecipe, _: torch.dtype) -> Optimizer:
    return Lamb(parameter_groups(model, recipe.weight_decay), recipe.learning_rate, recipe.betas, recipe.eps)


def _muon(model: nn.Module, recipe: OptimizerRecipe, matrix_dtype: torch.dtype) -> Optimizer:
    groups = parameter_groups(model, recipe.weight_decay)
    scale = recipe.fallback_lr_scale
    return Muon(groups, recipe.learning_rate, recipe.betas, recipe.eps, scale, matrix_dtype)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerRecipe, torch.dtype], Optimizer]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": _muon,
}
