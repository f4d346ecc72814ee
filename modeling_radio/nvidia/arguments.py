"""Checks of the training arguments and the `config.json` in NVIDIA's files, as far as they are read."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from modeling_radio.checks_radio import FLAG, LARGEST, MAPPING, MOST_BLOCKS, Rule, integer, listed, number

from .navit import is_navit


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}", value) is not None


_COUNT, _SIZE = integer(0), integer(1)
_BLOCK = integer(0, MOST_BLOCKS)
_FACTOR = number(f"(0, {LARGEST}]")
_NAME = Rule("one line of at most 200 characters", _is_line)
_ENTRIES = Rule("a list of at least one entry", lambda value: isinstance(value, list) and len(value) > 0)
_SWITCH = Rule("True, False or a mapping", lambda value: isinstance(value, (bool, dict)))

_VERSION = Rule("one line or a mapping", lambda value: _is_line(value) or isinstance(value, dict))
_CROSS_ATTENTION = {
    "type": _NAME,
    "num_heads": _SIZE,
    "rope_base": _FACTOR,
    "rope_fraction": number("[0, 1]"),
    "teacher_input_size": listed(_SIZE, 2),
    "teacher_patch_size": _SIZE,
}

# A value at each path; "*" stands for every key or position. A path that ends in "!" must be there and not null.
_ARGUMENTS = {
    "model!": _NAME,
    "model_kwargs": MAPPING,
    "model_kwargs.embed_dim": _SIZE,
    "model_kwargs.depth": _SIZE,
    "model_kwargs.num_heads": _SIZE,
    "model_kwargs.mlp_ratio": _FACTOR,
    "model_kwargs.img_size": _SIZE,
    "model_kwargs.cpe_max_size": _SIZE,
    "model_kwargs.num_cls_tokens": _COUNT,
    "model_kwargs.num_registers": _COUNT,
    "model_kwargs.register_multiple": _COUNT,
    "model_kwargs.downscale_levels": listed(_BLOCK),
    "model_kwargs.decoder_depth": _BLOCK,
    "model_kwargs.decoder_upscale_levels": listed(_BLOCK),
    "model_kwargs.qkv_bias": FLAG,
    "model_kwargs.qk_norm": FLAG,
    "model_kwargs.progressive_reduction": FLAG,
    "model_kwargs.patch_size": _SIZE,  # from here on of NaViT
    "model_kwargs.in_channels": _SIZE,
    "model_kwargs.norm_layer": _NAME,
    "model_kwargs.norm_method": _NAME,
    "model_kwargs.pool_type": _NAME,
    "model_kwargs.rope_base": _FACTOR,
    "model_kwargs.rope_fraction": number("[0, 1]"),
    "model_kwargs.init_values": number(f"[-{LARGEST}, {LARGEST}]"),
    "model_kwargs.matryoshka": FLAG,
    "model_kwargs.post_norm_affine": FLAG,
    "model_kwargs.vitdet_config": MAPPING,
    "model_kwargs.vitdet_config.window_size": _SIZE,
    "model_kwargs.vitdet_config.num_global": _SIZE,
    "model_kwargs.vitdet_config.global_attn_indices": listed(integer(-MOST_BLOCKS, MOST_BLOCKS)),
    "model_norm": FLAG,
    "teachers!": _ENTRIES,
    "teachers.*!": MAPPING,
    "teachers.*.name!": _NAME,
    "teachers.*.use_summary": FLAG,
    "teachers.*.fd_upsample_factor": _COUNT,
    "teachers.*.token_slot": _COUNT,
    "teachers.*.mlp_version": _NAME,
    "teachers.*.summary_mlp_version": _VERSION,  # of NaViT
    **{f"teachers.*.summary_mlp_version.{path}": rule for path, rule in _CROSS_ATTENTION.items()},
    **{f"mlp_version.{path}": rule for path, rule in _CROSS_ATTENTION.items()},
    "teachers.*.spatial_mlp_version": _NAME,
    "cls_token_per_teacher": FLAG,
    "register_multiple": _COUNT,
    "cpe_num_registers": _COUNT,
    "cpe_max_size": _SIZE,
    "mlp_version": _VERSION,
    "pos_embed_align_corners": FLAG,  # as the next two, of files that we write
    "vitdet_num_global": _SIZE,
    "vitdet_num_windowed": _SIZE,
    "spectral_reparam": _SWITCH,
    "spectral_reparam.eps": _FACTOR,
    "dtype": _NAME,  # transformers reads what has this name, wherever it is
    "*.dtype": _NAME,
}
_HEAD = {"hidden_dim!": _SIZE, "output_dim!": _SIZE, "num_inner!": _COUNT}
_HUB_CONFIG = {
    "version": _NAME,
    "max_resolution": _SIZE,
    "preferred_resolution": listed(_SIZE, 2),
    "vitdet_window_size": _SIZE,
    "adaptor_names": listed(_NAME),
    "adaptor_configs": MAPPING,
    "adaptor_configs.*!": MAPPING,
    "adaptor_configs.*.head_idx": _COUNT,
    "adaptor_configs.*.summary!": MAPPING,
    "adaptor_configs.*.feature!": MAPPING,
    **{f"adaptor_configs.*.{part}.{path}": rule for part in ("summary", "feature") for path, rule in _HEAD.items()},
    "adaptor_configs.*.feature.upsample_factor": _COUNT,
    "adaptors_beside": listed(MAPPING),  # which we write
    "adaptors_beside.*.name!": _NAME,
    "feature_normalizer_config": MAPPING,
    "inter_feature_normalizer_config": MAPPING,
    "inter_feature_normalizer_config.num_intermediates!": _SIZE,
    "inter_feature_normalizer_config.rot_per_layer!": FLAG,
}
_SOURCE = {
    "args": MAPPING,
    "arch": _NAME,
    "epoch": _COUNT,
    "heads": MAPPING,
    "heads.*!": _NAME,
    "layer_scale": FLAG,
}
_NEEDED_OF_FOLDERS = ("cpe_max_size", "mlp_version")


ERADIO = "eradio"
"""NVIDIA's name of the architecture of the E-RADIO that it published."""
_ERADIOS = re.compile(r"e-?radio")


def is_eradio(args: Mapping[str, Any]) -> bool:
    """True if training arguments of NVIDIA's are those of an E-RADIO."""
    return _ERADIOS.match(str(args.get("model"))) is not None


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
    args = config["args"]
    wanted = _NEEDED_OF_FOLDERS
    if isinstance(args, Mapping) and (is_eradio(args) or is_navit(args)):  # which have no table of positions
        wanted = () if is_eradio(args) else ("mlp_version",)
    needed = {f"{path}!" if path in wanted else path: rule for path, rule in _ARGUMENTS.items()}
    faults = [*_faults(needed, config["args"], "args."), *_faults(_HUB_CONFIG, config, "")]
    if not faults:
        known = {*described, *(adaptor["name"] for adaptor in config.get("adaptors_beside") or [])}
        faults = [f"`adaptor_configs.{_shown(name)}` must be given" for name in names or [] if name not in known]
    _refuse(faults, file)


def check_source(source: Mapping[str, Any], file: str) -> None:
    """Refuse a `RadioConfig.nvidia_source` that is not what conversion writes; see `check_arguments`."""
    faults = _faults(_SOURCE, source, "nvidia_source.")
    if not faults and source.get("args"):
        faults = _faults(_ARGUMENTS, source["args"], "nvidia_source.args.")
    _refuse(faults, file)


def _refuse(faults: Sequence[str], file: str) -> None:
    if faults:
        raise ValueError(f"{file!r} is damaged, or no checkpoint of NVIDIA's that we know: {'; '.join(faults)}.")


def _faults(rules: Mapping[str, Rule], values: Any, prefix: str) -> list[str]:
    found = []
    for path, rule in rules.items():
        names = path.removesuffix("!").split(".")
        for dotted, value in _values_at(values, names):
            if value is None and path.endswith("!"):
                found.append(f"`{prefix}{dotted}` must be given: {rule.text}")
            elif value is not None and not rule.holds(value):
                found.append(f"`{prefix}{dotted}` must be {rule.text}, got {value!r:.60}")
    return found


def _values_at(values: Any, names: Sequence[str], dotted: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a path leads to, None where there is nothing; nothing at all where what should hold it is no such."""
    if not names:
        yield dotted, values
        return
    first, *rest = names
    for key, entry in _entries(values):
        if first in ("*", key) and (entry is not None or not rest):
            yield from _values_at(entry, rest, f"{dotted}.{key}" if dotted else key)
    if first != "*" and not rest and isinstance(values, Mapping) and first not in values:
        yield f"{dotted}.{first}" if dotted else first, None


def _entries(values: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(values, list):
        values = dict(enumerate(values))
    return ((_shown(key), entry) for key, entry in values.items()) if isinstance(values, Mapping) else ()


def _shown(name: Any) -> str:
    """Return a name for a message of one line."""
    return str(name) if str(name).isprintable() else ascii(str(name))[1:-1]
