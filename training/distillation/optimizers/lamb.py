"""LAMB with a step count of its own for each parameter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.distillation.optimizers.moments import advance_moments
from training.student.shards import local_parts, whole_norms


class Lamb(Optimizer):
    """Adam's direction and the decayed weight, scaled to the weight's own norm; it does not clip gradients.

    As timm's and NVIDIA's Apex have it, what does not decay has no trust ratio. Both count steps per group, so that
    parameters which were frozen would start without bias correction; here each counts its own.

    Args:
        groups: With `params`, `weight_decay` and `use_trust_ratio`.
        lr: Learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.

    References:
        https://arxiv.org/abs/1904.00962; used by PHI-S, table 10, https://arxiv.org/abs/2410.01680
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]: takes no closure
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for moments in advance_moments(self, group):
                weights = local_parts(moments.parameters)
                updates = moments.directions(group["betas"], group["eps"])
                if group["weight_decay"]:
                    torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                if group["use_trust_ratio"]:
                    torch._foreach_mul_(updates, _trust_ratios(moments.parameters, weights, updates))
                torch._foreach_add_(weights, updates, alpha=-group["lr"])


def _trust_ratios(parameters: Sequence[Tensor], weights: Sequence[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
    """Return norms of weights over norms of updates; 1 where one of the two is zero."""
    weight_norms, update_norms = whole_norms(weights, parameters), whole_norms(updates, parameters)
    is_usable = (weight_norms > 0) & (update_norms > 0)
    return list(torch.where(is_usable, weight_norms / update_norms, 1.0).unbind())
