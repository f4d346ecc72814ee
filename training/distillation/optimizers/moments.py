"""Adam's two moments with a step count of its own for each parameter, for the optimizers that build on them."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.student.shards import local_parts


class Moments(NamedTuple):
    """Parameters that have taken equally many steps, the present one included, and this rank's part of their state.

    Attributes:
        parameters: They themselves, whole or sharded.
        gradients: Of this step.
        first: Moving averages of the gradients.
        second: Moving averages of their squares.
        step: How many steps these averages have seen, from 1.
    """

    parameters: list[Tensor]
    gradients: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    step: int

    def directions(self, betas: tuple[float, float], eps: float, *, use_nesterov: bool = False) -> list[Tensor]:
        """Return Adam's direction for each parameter, both moments corrected for their start at zero.

        Args:
            betas: Decay of the first and second moment.
            eps: Added to the denominator.
            use_nesterov: Count the gradient once more in the first moment, as timm's NAdamW does.
        """
        beta1, beta2 = betas
        first = torch._foreach_lerp(self.first, self.gradients, 1 - beta1) if use_nesterov else self.first
        denominators = torch._foreach_sqrt(self.second)
        torch._foreach_div_(denominators, (1 - beta2**self.step) ** 0.5)
        torch._foreach_add_(denominators, eps)
        directions = torch._foreach_div(first, 1 - beta1**self.step)
        torch._foreach_div_(directions, denominators)
        return list(directions)


def advance_moments(optimizer: Optimizer, group: dict[str, Any]) -> Iterator[Moments]:
    """Take the gradients of a group into its moments; parameters without one stay as they are, their counts too.

    Args:
        optimizer: Keeps `step`, `exp_avg` and `exp_avg_sq` of each parameter in its state.
        group: One of its groups, with `betas`.

    Yields:
        The parameters that moved, those with equally many steps at a time.
    """
    beta1, beta2 = group["betas"]
    members: dict[int, list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state = optimizer.state[parameter]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        members[state["step"]].append(parameter)
    for step, parameters in members.items():
        gradients = local_parts([parameter.grad for parameter in parameters])
        first, second = (
            local_parts([optimizer.state[parameter][name] for parameter in parameters])
            for name in ("exp_avg", "exp_avg_sq")
        )
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        yield Moments(parameters, gradients, first, second, step)
