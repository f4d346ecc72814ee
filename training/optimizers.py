"""Optimisers by name, and which parameters decay."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from training.recipe import OptimizerRecipe


UNDECAYED_SUFFIXES = ("pos_embed", "cls_token.token")
"""The position table and the prefix tokens (AM-RADIO's cropped position embeddings, https://arxiv.org/abs/2312.06709)."""

ADAPTOR_PREFIX = "radio_model.adaptors."


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    """Return the optimiser that the recipe names, over all parameters of a student.

    Raises:
        ValueError: If no optimiser has this name.
    """
    if recipe.name not in OPTIMIZERS:
        raise ValueError(f"`optimizer.name` must be one of {sorted(OPTIMIZERS)}; got {recipe.name!r}.")
    return OPTIMIZERS[recipe.name](parameter_groups(model, recipe.weight_decay), recipe)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not: vectors, position table, prefix tokens."""
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        is_decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED_SUFFIXES)
        (decayed if is_decayed else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def trunk_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters outside of the adaptors."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(ADAPTOR_PREFIX)]


def _adamw(groups: list[dict[str, Any]], recipe: OptimizerRecipe) -> Optimizer:
    betas = (recipe.betas[0], recipe.betas[1])
    return AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.eps, fused=True)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerRecipe], Optimizer]] = {"adamw": _adamw}
