"""Keyword arguments that are not ours: which of them the models take, and why; every other one is a mistake.

transformers hands the same keyword arguments to all parts of a model, and so do peft, `Trainer` and code that was
written for another vision model. What says nothing to us is passed over; what would change the answer of a model that
reads it is taken only where it asks for what we do.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .config_checks_radio import Rule
from .messages_radio import did_you_mean


_NOTHING = Rule("None", lambda value: value is None)
_ANYTHING = Rule("anything", lambda value: True)

# peft's feature extraction gives all models what language models read, each as `None`.
_OF_TEXT = ("input_ids", "attention_mask", "inputs_embeds", "position_ids")

# What composite models and `Trainer` give all of their parts (`TransformersKwargs`): of their texts and their loss.
_OF_OTHER_PARTS = (
    "num_items_in_batch",
    "output_router_logits",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
)

FOREIGN_ARGUMENTS: dict[str, Rule] = {
    **dict.fromkeys(_OF_TEXT, _NOTHING),
    **dict.fromkeys(_OF_OTHER_PARTS, _ANYTHING),
    # Attention goes both ways; language models around us ask for the other one of themselves.
    "is_causal": Rule("False or None", lambda value: value in (None, False)),
    # Other ViTs resize their positions only if asked to; here any size that the patch divides fits.
    "interpolate_pos_encoding": _ANYTHING,
}
"""By name what a keyword argument may be that a model takes without a parameter of that name."""


def check_call_arguments(model: nn.Module, arguments: Mapping[str, Any], method: str = "forward") -> None:
    """Refuse keyword arguments that neither the model nor `FOREIGN_ARGUMENTS` knows, or that ask for what is not done.

    Args:
        model: What was called.
        arguments: Those that no parameter has taken.
        method: Name of what was called of it.

    Raises:
        TypeError: If one is unknown, as from Python itself; the message suggests the nearest known one.
        ValueError: If a known one has a value that would not be heeded.
    """
    for name, value in arguments.items():
        if name not in FOREIGN_ARGUMENTS:
            hint = did_you_mean(name, _known_arguments(getattr(model, method)))
            raise TypeError(f"Unknown argument {name!r} of {type(model).__name__}.{method}.{hint}")
        if not FOREIGN_ARGUMENTS[name].holds(value):
            found = repr(value) if isinstance(value, (bool, int, str)) else f"a {type(value).__name__}"
            rule = FOREIGN_ARGUMENTS[name].text
            raise ValueError(f"`{name}` must be {rule}, got {found}. {type(model).__name__} does not read it.")


def _known_arguments(function: Callable[..., Any]) -> list[str]:
    """Return the names of all keyword arguments that a method takes, its own ones first."""
    parameters = inspect.signature(function).parameters.values()
    own = [each.name for each in parameters if each.kind != inspect.Parameter.VAR_KEYWORD]
    return [*own, "return_dict", *(name for name in FOREIGN_ARGUMENTS if name not in own)]
