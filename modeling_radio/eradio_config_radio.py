"""Arguments of E-RADIO's network: what each may be, and the configuration that follows; imported where there is one."""

from collections.abc import Mapping
from typing import Any

from .config_checks_radio import COUNT, FLAG, LARGEST, MOST_BLOCKS, Rule, integer, listed, number
from .messages_radio import did_you_mean
from .nvidia_arguments_radio import ERADIO
from .releases_radio import RELEASES


STRIDE = 16
"""Pixels of the image that one token of the features stands for; the coarsest level has twice as many."""
_LEVELS = 4
_ATTENTION_LEVELS = (2, 3)

PUBLISHED: dict[str, dict[str, Any]] = {ERADIO: RELEASES["e-radio_v2"].fields["eradio"]}
"""By the name of NVIDIA's architecture (`args.model`), the arguments of the networks that it published."""

_WINDOW = Rule(
    "an integer of at least 1, or a list of equal ones",
    lambda value: COUNT.holds(value) or (listed(COUNT).holds(value) and len(set(value)) == 1),
)
_RATIO = Rule(
    "1, 2 or a list of these",
    lambda value: value in (1, 2) or (listed(integer(1, 2)).holds(value) and len(value) > 0),
)
_OFF = (None, False, [], {}, "")  # also 0: whatever an argument that is not known here does, it is not asked for
_ANYTHING = Rule("anything", lambda value: True)


def _only(wanted: Any) -> Rule:
    return Rule(f"{wanted!r}, the only one that is built here", lambda value: value == wanted)


_RULES: dict[str, Rule] = {
    "dim": integer(2),
    "in_dim": COUNT,
    "depths": listed(integer(1, MOST_BLOCKS), _LEVELS),
    "num_heads": listed(COUNT, _LEVELS),
    "window_size": listed(_ANYTHING, _LEVELS),
    "mlp_ratio": number(f"(0, {LARGEST}]"),
    "sr_ratio": listed(_RATIO, _LEVELS),
    "cpb_mlp_hidden": COUNT,
    "full_features_head_dim": COUNT,
}
_FIXED: dict[str, Rule] = {
    "use_swiglu": _only(False),
    "yolo_arch": _only(True),
    "shuffle_down": _only(False),
    "conv_base": _only(True),
    "use_neck": _only(True),
    "neck_start_stage": _only(2),
    "return_full_features": _only(True),
    "drop_path_rate": number("[0, 1)"),  # of training, here without it
    "in_chans": _only(3),
    "num_classes": _ANYTHING,
    "resolution": _ANYTHING,
    "layer_scale": _only(None),
    "layer_scale_conv": _only(None),
    "qkv_bias": FLAG,  # NVIDIA's attention has none, whatever it says
}


def arguments_of(args: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of the network that a training run built.

    Args:
        args: Arguments of the run.
        beside: What `eradio_arguments.json` beside the checkpoint holds, where there is one.

    Raises:
        ValueError: If the network is none of the published ones and there is no such file, or it is wrong.
    """
    arguments = PUBLISHED.get(args["model"], beside)
    if arguments is None:
        raise ValueError(
            f"`args.model` must be one of {list(PUBLISHED)}, got {args['model']!r}. Put the arguments of another "
            "E-RADIO into `eradio_arguments.json` beside the checkpoint, and convert it with conversion.from_nvidia."
        )
    check_eradio(arguments)
    return dict(arguments)


def check_eradio(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a network that cannot be built.

    Args:
        arguments: As `eradio_arguments.json` has them.

    Raises:
        ValueError: It names the argument, its value and what it must be.
    """
    for name in _RULES:
        if name not in arguments:
            raise ValueError(f"`eradio.{name}` must be given.")
    for name, value in arguments.items():
        rule = _RULES.get(name) or _FIXED.get(name)
        if rule is None and value in _OFF:
            continue
        if rule is None:
            raise ValueError(f"`eradio.{name}` is no argument of E-RADIO.{did_you_mean(name, [*_RULES, *_FIXED])}")
        rule.check(f"eradio.{name}", value)
    if arguments["dim"] % 2:
        raise ValueError(f"`eradio.dim` must be even, got {arguments['dim']}.")
    for level in _ATTENTION_LEVELS:
        _WINDOW.check(f"eradio.window_size[{level}]", arguments["window_size"][level])
        width, heads = arguments["dim"] * 2**level, arguments["num_heads"][level]
        if width % heads:
            raise ValueError(f"`eradio.num_heads[{level}]` must divide the level's width, {width}, got {heads}.")


def as_list(value: Any) -> list[Any]:
    """Return an argument that may stand alone for one attention block, or in a list for several, as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def trained_window(arguments: Mapping[str, Any], level: int) -> int:
    """Return the window in tokens that a level with attention was trained with."""
    return as_list(arguments["window_size"][level])[0]


def eradio_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `RadioConfig` of a network.

    It has no class tokens: the mean of the features stands where one would, so that heads and outputs are those of
    every other RADIO.
    """
    check_eradio(arguments)
    return {
        "eradio": dict(arguments),
        "hidden_size": arguments["full_features_head_dim"],
        "num_hidden_layers": sum(arguments["depths"]),
        "num_attention_heads": 1,
        "patch_size": STRIDE,
        "num_cls_tokens": 1,
        "num_registers": 0,
        "summary_idxs": [0],
    }


def published_name(arguments: Mapping[str, Any]) -> str | None:
    """Return NVIDIA's name of a published network of these arguments, where there is one."""
    for name, published in PUBLISHED.items():
        if all(_plain(arguments.get(key)) == _plain(value) for key, value in published.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
