"""What the training arguments and the `config.json` of NVIDIA's files must look like, as far as they are read."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be.

    Attributes:
        text: In words.
        is_met: Whether a value is that.
    """

    text: str
    is_met: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}", value) is not None


_LARGEST = 1_000_000  # our choice: far beyond any network, and products of three of them are still numbers
_FLAG = Rule("true or false", lambda value: isinstance(value, bool))
_COUNT = Rule(f"an integer in [0, {_LARGEST:,}]", lambda value: _is_integer(value) and 0 <= value <= _LARGEST)
_SIZE = Rule(f"an integer in [1, {_LARGEST:,}]", lambda value: _is_integer(value) and 1 <= value <= _LARGEST)
_FACTOR = Rule("a finite number above 0", lambda value: _is_number(value) and 0 < value < math.inf)
_NAME = Rule("one line of at most 200 characters", _is_line)
_NAMES = Rule("a list of names", lambda value: isinstance(value, list) and all(map(_is_line, value)))
_SIDES = Rule(
    f"two integers in [1, {_LARGEST:,}]",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_SIZE.is_met, value)),
)
_MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))
_ENTRIES = Rule("a list of at least one entry", lambda value: isinstance(value, list) and len(value) > 0)
_SWITCH = Rule("true, false or a mapping", lambda value: isinstance(value, bool | Mapping))

# A value at each path; "*" stands for every key or position. A path that ends in "!" must be there and not null.
_ARGUMENTS = {
    "model": _NAME,
    "model_kwargs": _MAPPING,
    "model_kwargs.embed_dim": _SIZE,
    "model_kwargs.depth": _SIZE,
    "model_kwargs.num_heads": _SIZE,
    "model_kwargs.mlp_ratio": _FACTOR,
    "teachers!": _ENTRIES,
    "teachers.*!": _MAPPING,
    "teachers.*.name!": _NAME,
    "teachers.*.use_summary": _FLAG,
    "teachers.*.fd_upsample_factor": _COUNT,
    "teachers.*.token_slot": _COUNT,
    "cls_token_per_teacher": _FLAG,
    "register_multiple": _COUNT,
    "cpe_num_registers": _COUNT,
    "cpe_max_size": _SIZE,
    "mlp_version": _NAME,
    "spectral_reparam": _SWITCH,
    "spectral_reparam.eps": _FACTOR,
}
_HEAD = {"hidden_dim!": _SIZE, "output_dim!": _SIZE, "num_inner!": _COUNT}
_HUB_CONFIG = {
    "version": _NAME,
    "max_resolution": _SIZE,
    "preferred_resolution": _SIDES,
    "vitdet_window_size": _SIZE,
    "adaptor_names": _NAMES,
    "adaptor_configs": _MAPPING,
    "adaptor_configs.*!": _MAPPING,
    "adaptor_configs.*.head_idx": _COUNT,
    "adaptor_configs.*.summary!": _MAPPING,
    "adaptor_configs.*.feature!": _MAPPING,
    **{f"adaptor_configs.*.{part}.{path}": rule for part in ("summary", "feature") for path, rule in _HEAD.items()},
    "adaptor_configs.*.feature.upsample_factor": _COUNT,
    "feature_normalizer_config": _MAPPING,
    "inter_feature_normalizer_config": _MAPPING,
    "inter_feature_normalizer_config.num_intermediates!": _SIZE,
    "inter_feature_normalizer_config.rot_per_layer!": _FLAG,
}
_SOURCE = {
    "args": _MAPPING,
    "arch": _NAME,
    "epoch": _COUNT,
    "heads": _MAPPING,
    "heads.*!": _NAME,
    "layer_scale": _FLAG,
}
_NEEDED_OF_FOLDERS = ("model", "cpe_max_size", "mlp_version")


def check_arguments(args: Any, file: str) -> None:
    """Refuse training arguments of types or values that no run can have had.

    Args:
        args: As plain JSON values.
        file: Where they come from, for the message.

    Raises:
        ValueError: If any is not what it must be; all are named.
    """
    _refuse(_faults(_ARGUMENTS, args, "args."), file)


def check_hub_config(config: Mapping[str, Any], file: str) -> None:
    """Refuse a `config.json` that no folder in NVIDIA's layout can have; see `check_arguments`.

    Args:
        config: The parsed file, the training arguments under `args`.
        file: Where it comes from, for the message.
    """
    names, described = config.get("adaptor_names"), config.get("adaptor_configs") or {}
    needed = {f"{path}!" if path in _NEEDED_OF_FOLDERS else path: rule for path, rule in _ARGUMENTS.items()}
    faults = [*_faults(needed, config["args"], "args."), *_faults(_HUB_CONFIG, config, "")]
    if not faults:
        faults = [f"`adaptor_configs.{name}` must be given" for name in names or [] if name not in described]
    _refuse(faults, file)


def check_source(source: Any, file: str) -> None:
    """Refuse a `RadioConfig.nvidia_source` that is not what conversion writes; see `check_arguments`."""
    if not isinstance(source, Mapping):
        _refuse([f"`nvidia_source` must be {_MAPPING.text}, got {source!r:.60}"], file)
    faults = _faults(_SOURCE, source, "nvidia_source.")
    if not faults and source.get("args"):
        faults = _faults({"model!": _NAME, **_ARGUMENTS}, source["args"], "nvidia_source.args.")
    _refuse(faults, file)


def _refuse(faults: Sequence[str], file: str) -> None:
    if faults:
        raise ValueError(f"{file!r} is damaged, or no checkpoint of NVIDIA's that we know: {'; '.join(faults)}.")


def _faults(rules: Mapping[str, Rule], values: Any, prefix: str) -> list[str]:
    found = []
    for path, rule in rules.items():
        names = path.removesuffix("!").split(".")
        for place, value in _values_at(values, names):
            if value is None and path.endswith("!"):
                found.append(f"`{prefix}{place}` must be given: {rule.text}")
            elif value is not None and not rule.is_met(value):
                found.append(f"`{prefix}{place}` must be {rule.text}, got {value!r:.60}")
    return found


def _values_at(values: Any, names: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a path leads to, None where there is nothing; nothing at all where what should hold it is no such."""
    if not names:
        yield place, values
        return
    first, *rest = names
    for key, entry in _entries(values):
        if first in ("*", key) and (entry is not None or not rest):
            yield from _values_at(entry, rest, f"{place}.{key}" if place else key)
    if first != "*" and not rest and isinstance(values, Mapping) and first not in values:
        yield f"{place}.{first}" if place else first, None


def _entries(values: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(values, list):
        values = dict(enumerate(values))
    return ((str(key), entry) for key, entry in values.items()) if isinstance(values, Mapping) else ()
