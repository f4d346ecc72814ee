"""Muon: momentum made orthogonal for the matrices of the transformer blocks, NAdamW for everything else."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.distillation.optimizers.moments import advance_moments
from training.student.shards import gather_whole, local_parts, own_part


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
"""Of the odd polynomial of each Newton-Schulz iteration, fitted to bring singular values near 1 in five steps.

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
        dtype: What the matrices are made orthogonal in.

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
        dtype: What to compute in: bfloat16 where it is fast; it errs by about a hundredth.

    Returns:
        Matrices of the same shapes, in that precision.
    """
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        places[min(rows, columns), max(rows, columns)].append(place)
    results = list(matrices)
    for (rows, columns), members in places.items():
        size = max(1, MAX_BATCH_NUMBERS // (rows * columns))
        for batch in (members[start : start + size] for start in range(0, len(members), size)):
            wide = [matrices[place] if matrices[place].shape[0] == rows else matrices[place].mT for place in batch]
            for place, result in zip(batch, _iterate(torch.stack(wide), dtype), strict=True):
                results[place] = result if matrices[place].shape[0] == rows else result.mT
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
