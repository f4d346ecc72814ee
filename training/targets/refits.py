"""Refits of PHI-S without a jump: the dense heads follow their targets, and so do the optimizer's moments."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.adaptors_radio import RadioAdaptor
from training.distillation.sharding import reshard, rewrite
from training.student.intermediate import Taps
from training.targets.phi_s import AffineMap, map_rows


@torch.no_grad()
def follow_refits(
    changes: Mapping[str, AffineMap], models: Iterable[RadioModel], optimizer: Optimizer, taps: Taps | None = None
) -> None:
    """Let dense heads predict what they did, in the space into which a refit moved their targets; all ranks take part.

    What is predicted in the teachers' own spaces stays as it is. So do the averages of gradients that the optimizer
    keeps: the gradient of a squared error at the head's last layer turns with the map, exactly, so its running mean is
    turned. Of its square only the diagonal is known: it is turned as if the gradients of two outputs were independent,
    by the squares of the matrix. Clearing both would make the next steps of Adam as large as a run's first ones.

    Args:
        changes: By teacher, and by `Tap.target` for features on a teacher's way, see `TeacherStatistics.begin_step`.
        models: The student and its moving average, sharded or not; changed in place.
        optimizer: The student's; parameters that have no state yet have none afterwards.
        taps: Further heads that predict the same.

    References:
        The same rule for Adam in a space that turns, LDAdam, https://arxiv.org/abs/2410.16103, without its correction
        for the square of the mean (our choice: it needs the step count, which each optimizer keeps in its own way).
    """
    if not changes:
        return
    models = list(models)
    for model in models:
        reshard(model)
    for name, change in changes.items():
        adaptors = [model.radio_model.adaptors[name] for model in models if name in model.radio_model.adaptors]
        linears = [cast(RadioAdaptor, adaptor).last_dense_linear for adaptor in adaptors]
        for linear in linears + ([] if taps is None else taps.last_dense_linears(name)):
            rewrite(linear.weight, change.of_weight)
            rewrite(linear.bias, change.of_bias)
            for parameter in (linear.weight, linear.bias):
                _turn_moments(optimizer.state.get(parameter, {}), parameter, change.matrix)


def _turn_moments(state: Mapping[str, object], parameter: Tensor, matrix: Tensor) -> None:
    """Turn the averages in a parameter's state; by convention the names of those of squares end in "_sq"."""
    for name, moment in state.items():
        if isinstance(moment, Tensor) and moment.shape == parameter.shape:
            turn = matrix.square() if name.endswith("_sq") else matrix
            rewrite(moment, lambda values, turn=turn: map_rows(turn, values))
