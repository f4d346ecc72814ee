"""Groups of parameters that an optimizer moves alike."""

from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from modeling_radio.modeling_radio import BLOCKS
from training.student.parameters import STACKED_MATRICES, is_decayed, is_of_trunk, student_parameters
from training.student.regularizers.spectral import SCALE_SUFFIX


class _Traits(NamedTuple):
    """What decides how a parameter moves.

    Attributes:
        is_trunk: Whether it lies outside of all heads, so that it may be frozen at first.
        is_decayed: Whether weight decay acts on it.
        use_trust_ratio: Whether LAMB moves it in proportion to its norm.
        num_matrices: How many matrices of a transformer block it stacks; 0 for what is none.
    """

    is_trunk: bool
    is_decayed: bool
    use_trust_ratio: bool
    num_matrices: int


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return all parameters of a student, grouped by what decides how they move.

    Args:
        model: The student, with taps around it or not, before it is distributed.
        weight_decay: Of the parameters that decay.

    Returns:
        Groups with `params` and the options `weight_decay`, `is_trunk`, `use_trust_ratio` and `num_matrices`: see
        `_Traits`.
    """
    members = defaultdict(list)
    for name, parameter in student_parameters(model):
        members[_traits(name, parameter)].append(parameter)
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


def _traits(name: str, parameter: nn.Parameter) -> _Traits:
    decays, is_scale = is_decayed(name, parameter), name.endswith(SCALE_SUFFIX)
    is_matrix = name.startswith(f"{BLOCKS}.") and decays and not is_scale
    stacked = next((count for layer, count in STACKED_MATRICES.items() if f".{layer}." in name), 1)
    return _Traits(
        is_trunk=is_of_trunk(name),
        is_decayed=decays,
        # A scale is the inverse of softplus of a norm: in proportion to itself it would shrink, and stand still near 0.
        use_trust_ratio=decays and not is_scale,
        num_matrices=stacked if is_matrix else 0,
    )
