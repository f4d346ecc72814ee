"""Derives our configuration from a checkpoint of NVIDIA's: sizes from the tensors, the rest from its arguments."""

import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from itertools import count, islice
from typing import Any

from torch import Tensor

from modeling_radio.checks_radio import check_choice
from modeling_radio.modeling_radio import BLOCKS, FILLERS, PATCH_GENERATOR, POSITIONS, PREFIX_TOKENS
from modeling_radio.presets_radio import RELEASES, SIZES

from .arguments import is_eradio
from .config import (
    backbone_fields,
    has_one_token,
    release_fields,
    teacher_token_index,
    temporal_patch_size,
    token_fields,
)
from .navit import cross_attention_heads, head_options, is_navit
from .radio1d import MERGING_FIELDS, is_radio1d
from .source import NvidiaCheckpoint


_NORMALIZATION = {name: f"radio_model.input_conditioner.{name}" for name in ("norm_mean", "norm_std")}
_ESSENTIAL = {
    f"{PATCH_GENERATOR}.embedder.weight": 2,
    POSITIONS: 3,
    PREFIX_TOKENS: 2,
    **dict.fromkeys(_NORMALIZATION.values()),
    f"{BLOCKS}.0.attn.qkv.weight": 2,
}
"""Tensors that every RADIO ViT has, and the number of their dimensions where it matters."""
_PATCHES_OF_NAVIT = "radio_model.model.patch_embed.proj.weight"
_ESSENTIAL_OF_NAVIT = {
    _PATCHES_OF_NAVIT: 2,
    **dict.fromkeys(_NORMALIZATION.values()),
    f"{BLOCKS}.0.attn.qkv.weight": 2,
}
_SUMMARY_OF_CROSS_ATTENTION = "summary_proj"
_BLOCK = re.compile(rf"{re.escape(BLOCKS)}\.([0-9]{{1,4}})\.")
_HEADS_BY_WIDTH = {size.hidden_size: size.num_attention_heads for size in SIZES.values()}
_HEADS_OF_SMALL = 4  # our choice for widths below any published one: in test networks 64 channels a head are too many


def build_config_fields(
    state: Mapping[str, Tensor], source: NvidiaCheckpoint, version: str | None = None
) -> dict[str, Any]:
    """Return keyword arguments of `RadioConfig` for a checkpoint.

    Args:
        state: The weights under our keys, spectral reparametrization and LayerScale folded.
        source: The checkpoint, for its arguments.
        version: Name of the published version; `None` takes the one that the checkpoint names or resembles.

    Raises:
        ValueError: If tensors that determine sizes are missing or contradict each other, or the version is unknown.
    """
    if version is not None:
        check_choice("version", version, RELEASES)
    facts = {**(source.hub_config or {}), **({} if version is None else {"version": version})}
    if is_eradio(source.args):  # its arguments alone determine its shape, and the weights must fit
        _check_essential(state, _NORMALIZATION.values())
        shape, others = backbone_fields(source.args, source.eradio_arguments), _normalization_fields(state)
    elif is_navit(source.args):  # likewise
        _check_essential(state, _ESSENTIAL_OF_NAVIT)
        shape = backbone_fields(source.args)
        _shape(state, shape, _PATCHES_OF_NAVIT)
        heads = {
            name: head_options(source.args, name)
            for name in adaptor_names(state, source)
            if name in cross_attention_heads(source.args)
        }
        shape["navit"] |= {"heads": heads} if heads else {}
        others = {**_normalization_fields(state), **token_fields(source.args)}
    else:
        _check_essential(state, _ESSENTIAL)
        named = _named_fields(source.args)
        width, depth = _shape(state, named)
        shape = {"hidden_size": width, **_block_fields(state, named, depth), **_position_fields(state, named)}
        others = {**_normalization_fields(state), **_merging_fields(state, named), **_prefix_fields(state, source)}
    normalizers = _normalizer_fields(state)
    return {
        **shape,
        **others,
        **normalizers,
        **release_fields(source.args, shape, facts, has_normalizer=normalizers["use_feature_normalizer"]),
        "adaptors": [adaptor_fields(state, source, adaptor) for adaptor in adaptor_names(state, source)],
    }


def adaptor_names(keys: Iterable[str], source: NvidiaCheckpoint) -> list[str]:
    """Return the adaptors whose heads are among our keys, in the order of the checkpoint's teachers."""
    found = {key.split(".")[2] for key in keys if key.startswith("radio_model.adaptors.")}
    teachers = [teacher["name"] for teacher in source.args.get("teachers") or []]
    return [name for name in dict.fromkeys(teachers) if name in found]


def _check_essential(state: Mapping[str, Tensor], keys: Collection[str]) -> None:
    dimensions = {**_ESSENTIAL, **_ESSENTIAL_OF_NAVIT}
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"This is no RADIO, or it is damaged: it lacks {', '.join(missing)}.")
    for key in keys:
        ndim = dimensions[key]
        if ndim is not None and state[key].ndim != ndim:
            raise ValueError(f"`{key}` must have {ndim} dimensions, got the shape {tuple(state[key].shape)}.")


def _shape(
    state: Mapping[str, Tensor], named: Mapping[str, Any], patches: str = f"{PATCH_GENERATOR}.embedder.weight"
) -> tuple[int, int]:
    """Return width and number of blocks; `patches` is the key of the patch projection.

    Raises:
        ValueError: If a block is missing: a file that lost its last blocks must not pass as a smaller network, and a
            made-up block number must not make a huge one.
    """
    width = state[patches].shape[0]
    found = {int(match[1]) for key in state if (match := _BLOCK.match(key))}
    depth = max(found) + 1
    if named.get("hidden_size") == width:
        depth = max(depth, named["num_hidden_layers"])
    if depth > len(found):
        first = [f"{BLOCKS}.{index}" for index in islice((i for i in count() if i not in found), 8)]
        missing = ", ".join(first[: depth - len(found)])
        more = f" and {depth - len(found) - len(first):,} more" if depth - len(found) > len(first) else ""
        raise ValueError(f"The tensors do not fit the architecture. Blocks of [0, {depth}) missing: {missing}{more}.")
    return width, depth


def _named_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from the architecture's name; none for an unknown name."""
    if is_radio1d(args):
        return backbone_fields(args)  # no tensor says where tokens are merged
    try:
        return backbone_fields(args)
    except (KeyError, ValueError):
        return {}


def _block_fields(state: Mapping[str, Tensor], named: dict[str, Any], depth: int) -> dict[str, Any]:
    width = state[f"{PATCH_GENERATOR}.embedder.weight"].shape[0]
    swiglu = f"{BLOCKS}.0.mlp.w3.weight" in state
    return {
        "num_hidden_layers": depth,
        "num_attention_heads": _num_heads(width, named),
        "intermediate_size": _intermediate_size(state, width, swiglu=swiglu),
        "use_swiglu_ffn": swiglu,
        "qkv_bias": f"{BLOCKS}.0.attn.qkv.bias" in state,
        "use_layer_scale": f"{BLOCKS}.0.ls1.grandma" in state,
        "use_final_norm": "radio_model.model.norm.weight" in state,
        "use_patch_bias": f"{PATCH_GENERATOR}.embedder.bias" in state,
    }


def _merging_fields(state: Mapping[str, Tensor], named: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of RADIO1D alone: they come from the arguments, and the tensors must fit."""
    if not named.get("downscale_levels"):
        return {}
    fields = {name: named[name] for name in MERGING_FIELDS if name in named}
    # The first block may be a wide one already.
    fields["intermediate_size"] = int(named["hidden_size"] * named["mlp_ratio"])
    fillers = state.get(FILLERS)
    return fields if fillers is None else {**fields, "filler_grid_size": math.isqrt(len(fillers))}


def _num_heads(width: int, named: dict[str, Any]) -> int:
    """Return the number of attention heads, which no tensor determines.

    timm's architectures have theirs by name or keyword argument at any width; DINOv2's only at their own width.
    """
    by_name = named.get("num_attention_heads")
    if by_name is not None and (not named.get("use_patch_bias") or named["hidden_size"] == width):
        return by_name
    if width in _HEADS_BY_WIDTH:
        return _HEADS_BY_WIDTH[width]
    heads = width // 64 if width > min(_HEADS_BY_WIDTH) and width % 64 == 0 else _HEADS_OF_SMALL
    warnings.warn(
        f"The checkpoint does not tell its number of attention heads; took {heads} for width {width}. "
        "Pass config.num_attention_heads=N if that is wrong.",
        stacklevel=2,
    )
    return heads


def _intermediate_size(state: Mapping[str, Tensor], width: int, *, swiglu: bool) -> int:
    """Return the hidden width of the MLP as `RadioConfig` counts it."""
    layer = "mlp.w3" if swiglu else "mlp.fc2"
    weight = state.get(f"{BLOCKS}.0.{layer}.weight")
    if weight is None:
        raise ValueError(f"This is no RADIO, or it is damaged: it lacks {BLOCKS}.0.{layer}.weight.")
    if not swiglu:
        return weight.shape[1]
    # SwiGLU has two thirds of that width, rounded up to a multiple of 8.
    intermediate = weight.shape[1] * 3 // 2
    return 4 * width if intermediate == 4 * width - 4 * width % 12 else intermediate


def _position_fields(state: Mapping[str, Tensor], named: dict[str, Any]) -> dict[str, Any]:
    num_positions = state[f"{PATCH_GENERATOR}.pos_embed"].shape[1]
    channels = state[_NORMALIZATION["norm_mean"]].numel()
    weight, video = (state.get(f"{PATCH_GENERATOR}.{name}.weight") for name in ("embedder", "video_embedder"))
    assert weight is not None, "an essential one"
    patch_dim = weight.shape[1]
    grid, patch_size = math.isqrt(num_positions), math.isqrt(patch_dim // channels)
    if grid**2 != num_positions or channels * patch_size**2 != patch_dim:
        raise ValueError(
            f"The position table has {num_positions} rows and a patch {patch_dim} values over {channels} channels: "
            "both must make squares."
        )
    return {
        "patch_size": patch_size,
        "num_channels": channels,
        "max_img_size": grid * patch_size,
        "use_cropped_positions": named.get("use_cropped_positions", True),
        "video_temporal_patch_size": temporal_patch_size(None if video is None else video.shape, weight.shape),
    }


def _prefix_fields(state: Mapping[str, Tensor], source: NvidiaCheckpoint) -> dict[str, Any]:
    fields = token_fields(source.args, of_hub_folder=source.hub_config is not None)
    num_prefix = state[f"{PATCH_GENERATOR}.cls_token.token"].shape[0]
    fields["num_registers"] = num_prefix - fields["num_cls_tokens"]
    if fields["num_registers"] < 0:
        raise ValueError(f"There are {fields['num_cls_tokens']} teachers but only {num_prefix} prefix tokens.")
    stored = state.get("radio_model.summary_idxs")
    if stored is not None and not has_one_token(source.args):
        fields["summary_idxs"] = stored.tolist()
    return fields


def _normalization_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: state[key].flatten().tolist() for name, key in _NORMALIZATION.items()}


def _normalizer_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = "radio_model.inter_feature_normalizer"
    alphas, rotation = state.get(f"{prefix}.alphas"), state.get(f"{prefix}.rotation")
    return {
        "use_feature_normalizer": "radio_model.feature_normalizer.tx" in state,
        "num_intermediate_normalizers": 0 if alphas is None else len(alphas),
        "intermediate_rotation_per_layer": rotation is not None and rotation.ndim == 3,
    }


def adaptor_fields(state: Mapping[str, Tensor], source: NvidiaCheckpoint, name: str) -> dict[str, Any]:
    """Return an entry of `RadioConfig.adaptors`, by the adaptor's tensors under our keys."""
    heads = _tensors_of(state, name)
    if f"head_mlp.{_SUMMARY_OF_CROSS_ATTENTION}.0.weight" in heads:
        return _cross_attention_fields(heads, source, name)
    attention = "feat_mlp.mlp.fc1.weight" in heads
    summary = _mlp_fields(heads, "head_mlp")
    feature = _mlp_fields(heads, "feat_mlp.mlp" if attention else "feat_mlp")
    if not summary and not feature:
        raise ValueError(f"The heads of adaptor {name!r} are no MLPs that we know: they hold {', '.join(heads)}.")
    first = summary or feature
    described = ((source.hub_config or {}).get("adaptor_configs") or {}).get(name) or {}
    fields = {
        "name": name,
        "token_index": teacher_token_index(source.args, name, described.get("head_idx")),
        "mlp_version": first["mlp_version"],
        "hidden_size": first["hidden_size"],
        "num_inner_blocks": first["num_inner_blocks"],
        "summary_dim": summary.get("output_size"),
    }
    if feature:
        fields |= _feature_head_fields(feature, _upsample_factor(source, name), name)
        if feature["mlp_version"] != first["mlp_version"]:
            fields["feature_mlp_version"] = feature["mlp_version"]
    if attention:
        fields |= {"feature_head": "attention", "feature_num_blocks": _count(heads, r"feat_mlp\.blocks\.(\d+)\.norm1")}
    return fields


def _tensors_of(state: Mapping[str, Tensor], name: str, part: str = "") -> dict[str, Tensor]:
    """Return the tensors of an adaptor, or of a part of it, by the rest of their keys."""
    prefix = f"radio_model.adaptors.{name}.{part}"
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _cross_attention_fields(heads: Mapping[str, Tensor], source: NvidiaCheckpoint, name: str) -> dict[str, Any]:
    """Return an entry of `RadioConfig.adaptors` for a head that answers for both outputs."""
    sizes = {}
    for part in (_SUMMARY_OF_CROSS_ATTENTION, "feature_proj"):
        for layer in (0, 2):
            weight = heads.get(f"head_mlp.{part}.{layer}.weight")
            if weight is None:
                raise ValueError(f"The head of adaptor {name!r} lacks {part}.{layer}.weight.")
            sizes[part, layer] = weight.shape[0]
    summary_dim = sizes[_SUMMARY_OF_CROSS_ATTENTION, 2]
    return {
        "name": name,
        "token_index": teacher_token_index(source.args, name),
        "hidden_size": sizes[_SUMMARY_OF_CROSS_ATTENTION, 0],
        "num_inner_blocks": 0,
        "summary_dim": None if summary_dim == 1 else summary_dim,  # of a head that learned none
        "feature_dim": sizes["feature_proj", 2],
    }


def _feature_head_fields(feature: dict[str, Any], factor: int, name: str) -> dict[str, Any]:
    if feature["output_size"] % factor**2:
        raise ValueError(
            f"The dense head of adaptor {name!r} has {feature['output_size']} outputs, which an upsampling by {factor} "
            "does not divide."
        )
    return {
        "feature_hidden_size": feature["hidden_size"],
        "feature_num_inner_blocks": feature["num_inner_blocks"],
        "feature_dim": feature["output_size"] // factor**2,
        "upsample_factor": factor,
    }


def _mlp_fields(heads: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the sizes of one MLP, or nothing if there is none."""
    for version, last in (("v1", "fc2"), ("v2", "final.2")):
        # Weight or bias is enough here; a file that lacks one of them is refused later, for that tensor alone.
        first, output = (_either(heads, f"{prefix}.{layer}") for layer in ("fc1", last))
        if first is not None and output is not None:
            return {
                "mlp_version": version,
                "hidden_size": first.shape[0],
                "output_size": output.shape[0],
                "num_inner_blocks": _count(heads, rf"{re.escape(prefix)}\.blocks\.(\d+)\.0\.weight"),
            }
    return {}


def _either(heads: Mapping[str, Tensor], layer: str) -> Tensor | None:
    return heads.get(f"{layer}.weight", heads.get(f"{layer}.bias"))


def _count(keys: Iterable[str], pattern: str) -> int:
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def _upsample_factor(source: NvidiaCheckpoint, name: str) -> int:
    heads = ((source.hub_config or {}).get("adaptor_configs") or {}).get(name)
    if heads is not None:
        return heads["feature"].get("upsample_factor") or 1
    teacher = next(teacher for teacher in source.args["teachers"] if teacher["name"] == name)
    return teacher.get("fd_upsample_factor") or 1
