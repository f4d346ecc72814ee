"""Optimizers by name, and which parameters decay."""

from collections.abc import Callable
from typing import Any

from timm.optim import Lamb, Muon
from torch import nn
from torch.optim import AdamW, Optimizer

from modeling_radio.network_radio import BLOCKS
from training.recipe import OptimizerRecipe
from training.student.parameters import is_decayed
from training.student.spectral import SCALE_SUFFIX


MUON_MOMENTUM = 0.95  # Muon's own default


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    """Return the optimizer that the recipe names, over all parameters of a student."""
    return OPTIMIZERS[recipe.name](model, recipe)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay (see `is_decayed`) and those that do not."""
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        (decayed if is_decayed(name, parameter) else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def _adamw(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    groups = parameter_groups(model, recipe.weight_decay)
    betas = (recipe.betas[0], recipe.betas[1])
    return AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.eps, fused=True)


def _lamb(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    """LAMB without its own clipping: the trainer clips.

    References:
        https://arxiv.org/abs/1904.00962; used by PHI-S, table 10, https://arxiv.org/abs/2410.01680
    """
    groups = parameter_groups(model, recipe.weight_decay)
    betas = (recipe.betas[0], recipe.betas[1])
    return Lamb(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.eps, max_grad_norm=None)


def _muon(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    """Muon for the matrices of the transformer blocks, AdamW for everything else.

    References:
        https://kellerjordan.github.io/posts/muon; update size as AdamW's: https://arxiv.org/abs/2502.16982
    """
    decayed, undecayed = parameter_groups(model, recipe.weight_decay)
    of_blocks = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.startswith(f"{BLOCKS}.") and not name.endswith(SCALE_SUFFIX)
    }
    groups = [
        {**decayed, "params": [parameter for parameter in decayed["params"] if id(parameter) in of_blocks]},
        {**decayed, "params": [p for p in decayed["params"] if id(p) not in of_blocks], "use_fallback": True},
        {**undecayed, "use_fallback": True},
    ]
    return Muon(
        groups,
        lr=recipe.learning_rate,
        momentum=MUON_MOMENTUM,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
        fallback_lr_scale=recipe.fallback_lr_scale,
        betas=(recipe.betas[0], recipe.betas[1]),
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerRecipe], Optimizer]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": _muon,
}
