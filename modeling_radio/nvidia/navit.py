"""The training arguments of a NaViT, where `model_kwargs` hold all that shapes the network."""

import re
from collections.abc import Mapping
from typing import Any

from modeling_radio.presets_radio import NAVIT_FIELDS, NAVIT_SIZES


MODEL = "navit_"
"""Beginning of these architectures' names, such as `navit_small`."""
BY_DEPTH = -1234
"""Mark in `init_values`: LayerScale starts at 1 / sqrt(i + 1) in the 0-based block i."""
OLDER_NAMES = {
    rf"^(radio_model\.model\.blocks\.\d+)\.{older}\.": rf"\1.{today}."
    for older, today in (("norm1", "norm_attn_pre"), ("norm2", "norm_mlp_pre"))
}
"""Patterns of the names of norms in older files, under our keys, and what takes their places."""
CROSS_ATTENTION = "xattn_all"
"""Kind of a head that cross-attends to the patches."""
_PATCH_SIZE, _NUM_GLOBAL = 16, 4
_OPTIONS = ("norm_layer", "norm_method", "post_norm_affine", "rope_base", "rope_fraction", "pool_type", "matryoshka")
"""Options of the network that have NVIDIA's names."""
_HEAD_OPTIONS = ("num_layers", "num_heads", "rope_base", "rope_fraction", "allow_self_attn", "qk_norm")
"""Options of a head that have NVIDIA's names."""
_WORDS = ("norm_layer", "norm_method")  # in small letters here, in any there


def is_navit(args: Mapping[str, Any]) -> bool:
    """True if training arguments are those of a NaViT."""
    return str(args.get("model")).startswith(MODEL)


def navit_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `RadioConfig` that follow from the arguments.

    NVIDIA's code passes over unknown keywords in silence, and so does this.

    Args:
        args: Arguments of the training run.

    Raises:
        ValueError: If the size is unknown, or the arguments ask for a table of positions.
    """
    name = args["model"].removeprefix(MODEL)
    if name not in NAVIT_SIZES:
        raise ValueError(
            f"`args.model` must be one of {[MODEL + each for each in NAVIT_SIZES]}, got {args['model']!r}."
        )
    if args.get("cpe_max_size") is not None:
        raise ValueError(f"`args.cpe_max_size` must be null of {args['model']}, got {args['cpe_max_size']}.")
    kwargs = {key: value for key, value in (args.get("model_kwargs") or {}).items() if value is not None}
    size, patch_size = NAVIT_SIZES[name], kwargs.get("patch_size", _PATCH_SIZE)
    width, depth = kwargs.get("embed_dim", size.hidden_size), kwargs.get("depth", size.num_hidden_layers)
    start = kwargs.get("init_values") or 0
    options = {key: kwargs[key] for key in _OPTIONS if key in kwargs}
    options |= {key: options[key].lower() for key in _WORDS if key in options}
    return {
        **NAVIT_FIELDS,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": kwargs.get("num_heads", size.num_attention_heads),
        "intermediate_size": int(width * kwargs.get("mlp_ratio", size.mlp_ratio)),
        "qkv_bias": kwargs.get("qkv_bias", True),
        "patch_size": patch_size,
        "num_channels": kwargs.get("in_channels", 3),
        "max_img_size": 2048 * patch_size,
        "use_layer_scale": bool(start),
        "layerscale_value": start if start not in (0, BY_DEPTH) else 1.0,
        **_window_fields(kwargs.get("vitdet_config"), depth, options),
        "navit": {**options, **({"scaled_by_depth": True} if start == BY_DEPTH else {}), **_inner_summary(args)},
    }


def _window_fields(vitdet: Mapping[str, Any] | None, depth: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of windows; blocks that are named one by one go to the options."""
    if not vitdet or not vitdet.get("window_size"):
        return {"vitdet_window_size": None}
    chosen, num_global = vitdet.get("global_attn_indices"), vitdet.get("num_global") or _NUM_GLOBAL
    if chosen is not None:  # negative ones are of no block
        options["global_blocks"] = sorted({block for block in chosen if 0 <= block < depth})
    return {"vitdet_window_size": vitdet["window_size"], "vitdet_num_windowed": -(-depth // num_global) - 1}


def head_version(args: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a teacher's head, its kind under `type`: the teacher's own, or those of the run."""
    teacher: Mapping[str, Any] = next((each for each in args.get("teachers") or [] if each["name"] == name), {})
    version = teacher.get("summary_mlp_version") or args.get("mlp_version")
    return dict(version) if isinstance(version, dict) else {"type": version}


def cross_attention_heads(args: Mapping[str, Any]) -> list[str]:
    """Return the teachers whose heads cross-attend to the patches."""
    names = [teacher["name"] for teacher in args.get("teachers") or []]
    return [name for name in dict.fromkeys(names) if head_version(args, name).get("type") == CROSS_ATTENTION]


def check_heads_of_folder(args: Mapping[str, Any]) -> None:
    """Refuse a Hub folder of a run with cross-attention heads, which that layout cannot hold.

    Raises:
        ValueError: If there are such heads.
    """
    if is_navit(args) and cross_attention_heads(args):
        raise ValueError(
            f"`args.teachers` must be without {CROSS_ATTENTION!r} heads in a Hub folder, got those of "
            f"{cross_attention_heads(args)}: convert the `.pth.tar`, which has them."
        )


def head_options(args: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a head in `RadioConfig.navit`.

    Args:
        args: Arguments of the training run.
        name: The teacher's.

    Raises:
        ValueError: If the head attends to neighbors (NATTEN), or lacks the size of a patch.
    """
    version = head_version(args, name)
    given = {key: value for key, value in version.items() if value is not None}
    if "self_attn_kernel_size" in given:
        raise ValueError(
            f"`self_attn_kernel_size` of the head of {name!r} must be null, got {given['self_attn_kernel_size']!r}: "
            "attention to neighbors (NATTEN) is not built here."
        )
    size, patch = given.get("teacher_input_size"), given.get("teacher_patch_size")
    if size is not None and patch is None:
        raise ValueError(f"`teacher_patch_size` of the head of {name!r} must be given with `teacher_input_size`.")
    return {
        **{key: given[key] for key in _HEAD_OPTIONS if key in given},
        "use_layer_scale": version.get("init_values", BY_DEPTH) is not None,  # 0 is a LayerScale that starts at zeros
        "target_grid": None if size is None else [side // patch for side in size],
    }


def token_counts(args: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of class tokens and of registers, whatever the number of teachers."""
    kwargs = args.get("model_kwargs") or {}
    return kwargs.get("num_cls_tokens") or 0, kwargs.get("num_registers") or 0


def _inner_summary(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option of class tokens that make the summary of an intermediate block: those of summary teachers."""
    positions: dict[str, int] = {}
    for position, teacher in enumerate(args.get("teachers") or []):
        if teacher.get("use_summary", True):
            positions.setdefault(teacher["name"], position)
    count, _ = token_counts(args)
    chosen = [position for position in positions.values() if position < count]
    return {"inner_summary_idxs": chosen} if count > 1 and len(chosen) < count else {}


def todays_name(key: str) -> str:
    """Return one of our keys with today's name of its norm."""
    for older, today in OLDER_NAMES.items():
        key = re.sub(older, today, key)
    return key


def navit_arguments(config: Any) -> dict[str, Any]:
    """Return the training arguments of a NaViT of ours, all of whose sizes are in `model_kwargs`."""
    options: dict[str, Any] = config.navit
    windows = None
    if config.vitdet_window_size is not None:
        blocks = [block for block in range(config.num_hidden_layers) if config.is_global_block(block)]
        windows = {"window_size": config.vitdet_window_size, "global_attn_indices": blocks}
    start = BY_DEPTH if options.get("scaled_by_depth") else config.layerscale_value
    kwargs = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "patch_size": config.patch_size,
        "in_channels": config.num_channels,
        "init_values": start if config.use_layer_scale else None,
        "num_cls_tokens": config.num_cls_tokens,
        "num_registers": config.num_registers,
        "vitdet_config": windows,
        **{name: options[name] for name in _OPTIONS if name in options},
    }
    return {"model": f"{MODEL}base", "model_kwargs": kwargs}


def head_arguments(config: Any, name: str) -> dict[str, Any]:
    """Return what an entry of `teachers` says of an adaptor's head: nothing unless it cross-attends to the patches."""
    heads = (config.navit or {}).get("heads") or {}
    if name not in heads:
        return {}
    from modeling_radio.xattn_radio import HeadOptions  # which only networks with such heads need

    options = HeadOptions.of(name, heads[name], config.hidden_size)
    version = {
        "type": CROSS_ATTENTION,
        **{option: getattr(options, option) for option in _HEAD_OPTIONS},
        "init_values": BY_DEPTH if options.use_layer_scale else None,
        "feature_dim": config.adaptor(name).feature_dim,
    }
    if options.target_grid is not None:
        if not options.align_corners:
            raise ValueError(
                f"`navit.heads.{name}.target_grid` must be null in NVIDIA's code without `align_corners`, got "
                f"{options.target_grid}: there the outer cells lie on the centers of the image's outer patches."
            )
        sides = [side * config.patch_size for side in options.target_grid]
        version |= {"teacher_input_size": sides, "teacher_patch_size": config.patch_size}
    return {"summary_mlp_version": version}
