"""Dense heads and their standardized targets: heads are standardized at the start, moved with refits, and exported.

A head predicts standardized features (`phi_s.py`). A head from a checkpoint predicts the teacher's own
features: the map is folded into its last layer (`standardize_heads`). When the map is refitted, the layer and the
optimizer's moments move with it (`rebase_heads`). For export its inverse is folded in (`unstandardize_heads`).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.training.student.sharding import reshard, rewrite
from modeling_radio.training.targets.phi_s import AffineMap, FeatureStandardizer, map_rows


def standardize_heads(
    student: RadioModel, names: Iterable[str], standardizers: Mapping[str, FeatureStandardizer]
) -> None:
    """Let dense heads that predict the teachers' own features predict standardized ones, in place."""
    for name in names:
        standardizers[name].fold_into_linear(student.radio_model.adaptor(name).last_dense_linear)


def unstandardize_heads(student: RadioModel, standardizers: Mapping[str, FeatureStandardizer]) -> None:
    """Let dense heads that predict standardized features predict the teachers' own ones, in place."""
    for name, standardizer in standardizers.items():
        standardizer.fold_inverse_into_linear(student.radio_model.adaptor(name).last_dense_linear)


@torch.no_grad()
def rebase_heads(
    changes: Mapping[str, AffineMap],
    models: Iterable[RadioModel],
    optimizer: Optimizer,
    further_linears: Callable[[str], Iterable[nn.Linear]] = lambda _: (),
) -> None:
    """Move the dense heads, and the optimizer's moments, with their targets after a refit; all ranks take part.

    Predictions stay the same in the teachers' own spaces. The gradient of a squared error at a head's last layer turns
    with the map, exactly, so its running mean is turned. Only the diagonal of its running square is known: it is turned
    by the squares of the matrix, as if the gradients of two outputs were independent. Clearing both would make the next
    steps of Adam as large as the first ones of a run.

    Args:
        changes: By teacher, see `TeacherStatistics.begin_step`.
        models: The student and its moving average, sharded or not; changed in place.
        optimizer: The student's; parameters without state stay without.
        further_linears: Returns the last layers of further heads that predict a teacher's features.

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
        linears = [model.radio_model.adaptor(name).last_dense_linear for model in models]
        for linear in [*linears, *further_linears(name)]:
            rewrite(linear.weight, change.of_weight)
            rewrite(linear.bias, change.of_bias)
            for parameter in (linear.weight, linear.bias):
                _turn_moments(optimizer.state.get(parameter, {}), parameter, change.matrix)


def _turn_moments(state: Mapping[str, object], parameter: Tensor, matrix: Tensor) -> None:
    """Turn the averages in a parameter's state; by convention the names of averages of squares end in "_sq"."""
    for name, moment in state.items():
        if isinstance(moment, Tensor) and moment.shape == parameter.shape:
            turn = matrix.square() if name.endswith("_sq") else matrix
            rewrite(moment, lambda values, turn=turn: map_rows(turn, values))
