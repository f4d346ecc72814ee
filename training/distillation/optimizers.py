"""Optimizers by name, and their groups of parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from modeling_radio.modeling_radio import BLOCKS
from modeling_radio.training.recipes.recipe import OptimizerRecipe
from modeling_radio.training.student.parameters import (
    count_stacked,
    decayed_parameters,
    is_of_trunk,
    student_parameters,
)
from modeling_radio.training.student.regularizers import SCALE_SUFFIX
from modeling_radio.training.student.sharding import gather_whole, local_parts, own_part, whole_norms


class _Traits(NamedTuple):
    """Properties of a parameter that decide how it moves.

    Attributes:
        is_trunk: Whether it lies outside of all heads, so that it may be frozen at first.
        is_decayed: Whether weight decay acts on it.
        use_trust_ratio: Whether LAMB moves it in proportion to its norm.
        num_matrices: Number of matrices of a transformer block that it stacks; 0 for other parameters.
    """

    is_trunk: bool
    is_decayed: bool
    use_trust_ratio: bool
    num_matrices: int


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return all parameters of a student, grouped by the properties that decide how they move.

    Args:
        model: The student, with auxiliary heads around it or not, before it is distributed.
        weight_decay: Weight decay of the parameters that decay.

    Returns:
        Groups with `params` and the options `weight_decay`, `is_trunk`, `use_trust_ratio` and `num_matrices`: see
        `_Traits`.
    """
    decayed = decayed_parameters(model)
    linear = {each for module in model.modules() if isinstance(module, nn.Linear) for each in module.parameters()}
    members = defaultdict(list)
    for name, parameter in student_parameters(model):
        members[_traits(name, parameter, parameter in decayed, parameter in linear)].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if traits.is_decayed else 0.0,
            "is_trunk": traits.is_trunk,
            "use_trust_ratio": traits.use_trust_ratio,
            "num_matrices": traits.num_matrices,
        }
        for traits, parameters in members.items()
    ]


_MATRIX_PREFIXES = tuple(f"{BLOCKS.removesuffix('blocks')}{part}." for part in ("blocks", "levels", "network"))
"""Prefixes of the names of the trunk's linear layers in our ViTs, in E-RADIO and in networks of libraries."""


def _traits(name: str, parameter: nn.Parameter, decays: bool, is_linear: bool) -> _Traits:
    is_scale = name.endswith(SCALE_SUFFIX)
    is_matrix = name.startswith(_MATRIX_PREFIXES) and is_linear and decays and not is_scale
    return _Traits(
        is_trunk=is_of_trunk(name),
        is_decayed=decays,
        # A scale is the inverse of softplus of a norm: in proportion to itself it would shrink, and stand still near 0.
        use_trust_ratio=decays and not is_scale,
        num_matrices=count_stacked(name, len(parameter)) if is_matrix else 0,
    )


class Moments(NamedTuple):
    """Parameters that have taken equally many steps, the present one included, and this rank's part of their state.

    Attributes:
        parameters: They themselves, whole or sharded.
        gradients: Gradients of this step.
        first: Moving averages of the gradients.
        second: Moving averages of their squares.
        step: Number of steps that these averages have seen, from 1.
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


MOMENTUM = 0.95  # Muon's own default
UPDATE_RMS = 0.2
"""Root mean square of the numbers of an update before the learning rate, about as large as AdamW's are in practice, so
that both can share a learning rate. https://arxiv.org/abs/2502.16982, section 2.2"""
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of the odd polynomial of each Newton-Schulz iteration, which bring singular values near 1 in five steps.

https://leloykun.github.io/ponder/muon-opt-coeffs
"""
EPSILON = 1e-7  # least norm that is divided by; Muon's own
MAX_BATCH_NUMBERS = 2**26
"""Numbers in one batch, 256 MB in float32. Our choice: few matrices of such a size keep any device busy."""


class Muon(Optimizer):
    """Moves each matrix along its orthogonalized momentum, with Nesterov's step and decoupled decay.

    Query, key and value, and SwiGLU's gate and value, are stacked in one weight, but matrices of their own: each is
    made orthogonal by itself. All matrices of one shape go through the iteration as one batch. With FSDP every rank
    gathers the momenta and computes all of them.

    Args:
        groups: With `params`, `weight_decay` and `num_matrices`: how many matrices each weight stacks, or 0 for what
            NAdamW moves.
        lr: Learning rate.
        betas: Decay of NAdamW's first and second moment.
        eps: Added to NAdamW's denominator.
        fallback_lr_scale: NAdamW's learning rate over `lr`.
        dtype: Type in which the matrices are made orthogonal.

    References:
        https://kellerjordan.github.io/posts/muon; NAdamW is AdamW whose first moment counts the gradient once more, as
        timm has it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        fallback_lr_scale: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "fallback_lr_scale": fallback_lr_scale})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]: takes no closure
        """Move all parameters that have a gradient."""
        matrix_groups = []
        for group in self.param_groups:
            if group["num_matrices"]:
                matrix_groups.append(group)
            else:
                self._move_by_nadamw(group)
        self._move_matrices(matrix_groups)

    def _move_by_nadamw(self, group: dict[str, Any]) -> None:
        learning_rate = group["lr"] * group["fallback_lr_scale"]
        for moments in advance_moments(self, group):
            weights = local_parts(moments.parameters)
            updates = moments.directions(group["betas"], group["eps"], use_nesterov=True)
            torch._foreach_mul_(weights, 1 - learning_rate * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-learning_rate)

    def _move_matrices(self, groups: list[dict[str, Any]]) -> None:
        """Move stacked matrices; those of all groups together, so that equal shapes make one batch."""
        moving = [(weight, group) for group in groups for weight in group["params"] if weight.grad is not None]
        if not moving:
            return
        weights = [weight for weight, _ in moving]
        momenta = self._advance_momenta(weights)
        counts = [group["num_matrices"] for _, group in moving]
        matrices = [
            matrix
            for weight, momentum, count in zip(weights, momenta, counts, strict=True)
            for matrix in gather_whole(momentum, weight).chunk(count)
        ]
        waiting = iter(orthogonalize(matrices, self.dtype))
        for weight, group in moving:
            parts = [next(waiting) for _ in range(group["num_matrices"])]
            update = own_part(torch.cat(parts), weight)
            (part,) = local_parts([weight])
            part.mul_(1 - group["lr"] * group["weight_decay"])
            part.add_(update, alpha=-group["lr"] * UPDATE_RMS * max(parts[0].shape) ** 0.5)

    def _advance_momenta(self, weights: list[Tensor]) -> list[Tensor]:
        """Take the gradients into the momenta; return what Nesterov's step makes of this rank's parts."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = local_parts([weight.grad for weight in weights])
        momenta = local_parts([self.state[weight]["momentum_buffer"] for weight in weights])
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, momenta, MOMENTUM))


def orthogonalize(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Bring all singular values of each matrix near 1, from 0.7 to 1.2, but for those that are zero.

    A Newton-Schulz iteration: roughly the nearest orthogonal matrix. Matrices of one shape, or of its transpose, go
    through it as one batch.

    Args:
        matrices: Each `(rows, columns)`, of any shapes.
        dtype: Type to compute in: bfloat16 where it is fast; it errs by about a hundredth.

    Returns:
        Matrices of the same shapes, in that precision.
    """
    indices: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        indices[min(rows, columns), max(rows, columns)].append(index)
    results = list(matrices)
    for (rows, columns), members in indices.items():
        size = max(1, MAX_BATCH_NUMBERS // (rows * columns))
        for batch in (members[start : start + size] for start in range(0, len(members), size)):
            wide = [matrices[index] if matrices[index].shape[0] == rows else matrices[index].mT for index in batch]
            for index, result in zip(batch, _iterate(torch.stack(wide), dtype), strict=True):
                results[index] = result if matrices[index].shape[0] == rows else result.mT
    return results


def _iterate(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the orthogonal factors of wide matrices `(batch, rows, columns)`."""
    norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp_(min=EPSILON)  # above the spectral norms
    result = (stack / norms).to(dtype)
    for linear, cubic, quintic in COEFFICIENTS:
        square = result @ result.mT
        factor = torch.baddbmm(square, square, square, beta=cubic, alpha=quintic)
        result = torch.baddbmm(result, factor, result, beta=linear)
    return result


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, matrix_dtype: torch.dtype = torch.float32) -> Optimizer:
    """Return the optimizer that the recipe names, over all parameters of a student.

    Each counts the steps of each parameter, so that bias correction starts when the parameter does.

    Args:
        model: The student, before it is distributed.
        recipe: Its settings.
        matrix_dtype: Type in which Muon makes matrices orthogonal; its momenta and the weights stay as they are.
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
