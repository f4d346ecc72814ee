"""Reads the configuration of NVIDIA's own repositories, where it is the argument list of the training run."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modeling_radio.checks_radio import own_name, round_to_step
from modeling_radio.presets_radio import DINO_FIELDS, RELEASES, SIZES, Size

from .arguments import check_hub_config, is_eradio
from .navit import check_heads_of_folder, is_navit, navit_fields, token_counts
from .radio1d import MODEL, is_radio1d, merging_fields, prefix_counts
from .recognition import MATTERING, recognize


# DINOv2's ViTs with registers as students: whose shape they have, and whether with SwiGLU.
_DINO_STUDENTS = {"dino_v2_g_student": ("giant", True), "dino_v2_l_student": ("large", False)}
# NVIDIA's variants of the timm models with LayerScale, built for 592 px (DINOv2's 518 px in patches of 16).
_LAYER_SCALE_MODELS = re.compile(r"vit_(base|large)_patch16_v2_")
_LAYER_SCALE_MODELS_IMAGE_SIZE = 592
_DEFAULT_PREFERRED_PX = 512
_DEFAULT_MAX_PX = 2048
BESIDE = "adaptors_beside"
"""Field of a `config.json` that `beside` writes: adaptors of the training file, as `RadioConfig.adaptors` has them."""
_MIN_BLOCKS_PER_GLOBAL = 2  # a period of one block would leave no windowed block


def is_nvidia_config(config: dict[str, Any]) -> bool:
    """True if a `config.json` object is in NVIDIA's layout."""
    return isinstance(config.get("args"), dict) and "hidden_size" not in config


def config_fields_from_nvidia(config: dict[str, Any], adaptor_names: Any = None) -> dict[str, Any]:
    """Translate NVIDIA's `config.json` into `RadioConfig` fields.

    Args:
        config: The parsed file: the training arguments under `args`, beside the adaptors' shapes.
        adaptor_names: Adaptors that a caller asks for, see `with_adaptors`.

    Returns:
        Keyword arguments of `RadioConfig`.

    Raises:
        ValueError: If the architecture is not one that RADIO students use, or the file says something that no file
            of NVIDIA's can.
    """
    check_hub_config(config, "config.json")
    config = with_adaptors(config, adaptor_names)
    args = config["args"]
    check_heads_of_folder(args)
    backbone, has_normalizer = backbone_fields(args), config.get("feature_normalizer_config") is not None
    fields = {
        **backbone,
        **token_fields(args, of_hub_folder=True),
        **release_fields(args, backbone, config, has_normalizer=has_normalizer),
        "use_feature_normalizer": has_normalizer,
        "adaptors": [*_adaptors(config), *(config.get(BESIDE) or [])],
        "nvidia_source": source_fields(args, layer_scale=backbone["use_layer_scale"]),
    }
    intermediate = config.get("inter_feature_normalizer_config")
    if intermediate is not None:
        fields["num_intermediate_normalizers"] = intermediate["num_intermediates"]
        fields["intermediate_rotation_per_layer"] = intermediate["rot_per_layer"]
    return fields


def with_adaptors(config: dict[str, Any], names: Any) -> dict[str, Any]:
    """Return NVIDIA's `config.json` with the adaptors that a caller asks for added to those that it names.

    NVIDIA's file names no adaptors: its users set `adaptor_names` to some of those that `adaptor_configs` describes.

    Args:
        config: The parsed file, checked.
        names: The caller's `adaptor_names`. `RadioConfig` refuses those that the file does not describe.
    """
    described = [*(config.get("adaptor_configs") or {}), *(adaptor["name"] for adaptor in config.get(BESIDE) or [])]
    asked = [own_name(name, described) for name in names] if isinstance(names, list | tuple) else []
    asked = [name for name in asked if name in described]
    return {**config, "adaptor_names": list(dict.fromkeys([*(config.get("adaptor_names") or []), *asked]))}


def source_fields(
    args: dict[str, Any],
    *,
    layer_scale: bool,
    arch: str | None = None,
    epoch: int | None = None,
    heads: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return `RadioConfig.nvidia_source`: what a training file needs beside the weights.

    Args:
        args: Arguments of the training run.
        layer_scale: Whether NVIDIA's file has LayerScale; here it may be folded.
        arch: The file's name of the architecture; None takes that of the arguments.
        epoch: Last epoch, where the file has one.
        heads: Name of each adaptor in the file's keys.
    """
    return {
        "args": args,
        "arch": arch or args.get("model"),
        "epoch": epoch,
        "heads": dict(heads or {}),
        "layer_scale": layer_scale,
    }


def temporal_patch_size(video_shape: Sequence[int] | None, patch_shape: Sequence[int]) -> int | None:
    """Return the frames of a temporal patch, which the projections' widths tell; no argument names them.

    Args:
        video_shape: Shape of `patch_generator.video_embedder.weight`, `None` where there is no such tensor.
        patch_shape: Shape of `patch_generator.embedder.weight`.

    Raises:
        ValueError: If the one is no multiple of the other, or of a single frame.
    """
    if video_shape is None:
        return None
    hidden, width = patch_shape
    if len(video_shape) != 2 or video_shape[0] != hidden or video_shape[1] % width or video_shape[1] < 2 * width:
        raise ValueError(
            f"`patch_generator.video_embedder.weight` must have the shape ({hidden}, {width} times the frames of a "
            f"patch, at least 2), got {tuple(video_shape)}."
        )
    return video_shape[1] // width


def release_fields(
    args: Mapping[str, Any], shape: Mapping[str, Any], facts: Mapping[str, Any], *, has_normalizer: bool = False
) -> dict[str, Any]:
    """Return what only the published version tells: sizes in pixels, ViTDet mode, how positions are resized.

    NVIDIA's code resizes positions with aligned corners in the Hub repositories of C-RADIOv3-B and -H and in no other:
    the version decides it. Its code of today aligns none; a folder with one of these versions that has LayerScale, and
    both another size and another table, is taken for one of today's (our choice: nothing of the kind is published).

    Args:
        args: Arguments of the training run; those that we write also say what no tensor shows (`MATTERING`).
        shape: `hidden_size`, `num_hidden_layers`, `patch_size` and `use_patch_bias` of the network.
        facts: Further facts of the source, under the names of NVIDIA's `config.json`: `version`, `max_resolution`,
            `preferred_resolution`, `vitdet_window_size`. Without a version, the release is recognized.
        has_normalizer: Whether the network normalizes features.

    Raises:
        ValueError: If there is no version, and releases with other positions or windows cannot be told apart.
    """
    version = facts.get("version")
    stated = {name: args[name] for name in MATTERING if args.get(name) is not None}
    if version or stated:
        release = RELEASES.get(version or "")
        fields: Mapping[str, Any] = {} if release is None else release.fields
    else:
        release, fields = recognize(args, shape, has_normalizer=has_normalizer)
    preferred = facts.get("preferred_resolution") or [release.preferred_px if release else _DEFAULT_PREFERRED_PX] * 2
    is_of_today = (
        release is not None
        and _has_layer_scale(args.get("model") or "")
        and shape["hidden_size"] != SIZES[release.size or ""].hidden_size
        and args.get("cpe_max_size") != _DEFAULT_MAX_PX
    )
    return {
        "version": version or (release.version if release else None),
        "max_resolution": facts.get("max_resolution") or (release.max_px if release else _DEFAULT_MAX_PX),
        "preferred_resolution": [round_to_step(side, shape["patch_size"]) for side in preferred],
        "pos_embed_align_corners": fields.get("pos_embed_align_corners", False) and not is_of_today,
        "vitdet_window_size": facts.get("vitdet_window_size") or shape.get("vitdet_window_size"),
        **({} if "vitdet_num_windowed" in shape else _vitdet_fields(fields, shape["num_hidden_layers"])),
        **stated,
    }


def _vitdet_fields(release: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return the blocks with global attention: the release's or its generation's, where these leave them open four."""
    if release.get("vitdet_num_windowed"):
        return {"vitdet_num_windowed": release["vitdet_num_windowed"]}
    published = release.get("vitdet_num_global", 4)
    # Our choice: the published number is for deep networks; in a shallow one a third of the blocks stays global.
    enough = depth // published >= _MIN_BLOCKS_PER_GLOBAL
    return {"vitdet_num_global": published if enough else max(depth // 3, 1)}


def backbone_fields(args: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields that follow from the student's architecture name and its keyword arguments.

    Args:
        args: Arguments of the training run.
        beside: Arguments of an unpublished E-RADIO.

    Raises:
        ValueError: If the architecture is not one that RADIO students use.
    """
    name = args["model"]
    kwargs = {key: value for key, value in (args.get("model_kwargs") or {}).items() if value is not None}
    if is_eradio(args):
        from modeling_radio.eradio_radio import eradio_fields

        from .eradio import arguments_of

        plain = {"use_layer_scale": False, "use_patch_bias": False}
        return {**eradio_fields(arguments_of(args, beside)), **plain}
    if is_navit(args):
        return navit_fields(args)
    if name in _DINO_STUDENTS:
        size_name, use_swiglu = _DINO_STUDENTS[name]
        shape = {**_shape_fields(SIZES[size_name], kwargs), **DINO_FIELDS}
        return {**shape, "use_swiglu_ffn": use_swiglu, "max_img_size": args["cpe_max_size"]}
    match = re.match(r"(vit_|radio1d_)([a-zA-Z0-9]+(?:_v2)?)_patch(\d+)", name)
    if match is None or match.group(2) not in SIZES:
        known = [*(f"{kind}{size}_patch*" for kind in ("vit_", MODEL) for size in SIZES), *_DINO_STUDENTS, "navit_*"]
        raise ValueError(f"`args.model` must be one of {known}, got {name!r}.")
    if kwargs.get("scaled_ln"):
        raise ValueError("`args.model_kwargs.scaled_ln` (layer norms scaled by depth) is not supported.")
    size, patch_size = SIZES[match.group(2)], int(match.group(3))
    if is_radio1d(args):
        return {
            **_shape_fields(size, kwargs),
            **merging_fields(size, kwargs, patch_size),
            "patch_size": patch_size,
            "use_patch_bias": False,
            "use_final_norm": bool(args.get("model_norm")),
        }
    return {
        **_shape_fields(size, kwargs),
        "patch_size": patch_size,
        "max_img_size": args["cpe_max_size"],
        # NVIDIA's code crops positions only where the table is larger than the timm model's own image size.
        "use_cropped_positions": _native_image_size(name, kwargs) != args["cpe_max_size"],
        "use_layer_scale": _has_layer_scale(name),
        "use_patch_bias": False,
    }


def _shape_fields(size: Size, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": kwargs.get("embed_dim", size.hidden_size),
        "num_hidden_layers": kwargs.get("depth", size.num_hidden_layers),
        "num_attention_heads": kwargs.get("num_heads", size.num_attention_heads),
        "mlp_ratio": float(kwargs.get("mlp_ratio", size.mlp_ratio)),
    }


def has_one_token(args: Mapping[str, Any]) -> bool:
    """True if all heads and the summary read one token, as in NVIDIA's wrapper of DINOv2's ViTs and in E-RADIO.

    Of NaViT the heads: all its class tokens make the summary.
    """
    is_shared = args.get("model") in _DINO_STUDENTS or not args.get("cls_token_per_teacher", True)
    return is_shared or is_eradio(args) or (is_navit(args) and token_counts(args)[0] == 1)


def token_fields(args: Mapping[str, Any], *, of_hub_folder: bool = False) -> dict[str, Any]:
    """Return class tokens, registers and summary tokens as the training arguments imply them.

    The summary goes by position among all entries of `teachers`, repetitions included, whatever token a teacher's head
    reads: of each name the first entry that has a summary, in a Hub folder every entry that has one.

    Args:
        args: Arguments of the training run.
        of_hub_folder: Whether they are those of a `config.json` instead of a training file.
    """
    positions: dict[str | int, int] = {}
    for position, teacher in enumerate(args["teachers"]):
        if teacher.get("use_summary", True):
            positions.setdefault(position if of_hub_folder else teacher["name"], position)
    if is_navit(args):  # all class tokens make the summary, whatever the teachers have
        num_cls_tokens, num_registers = token_counts(args)
        summary_idxs = list(range(num_cls_tokens))
        return {"num_cls_tokens": num_cls_tokens, "num_registers": num_registers, "summary_idxs": summary_idxs}
    if is_radio1d(args):
        num_cls_tokens, num_registers = prefix_counts(args)
    elif is_eradio(args):
        num_cls_tokens, num_registers = 1, 0
    else:
        num_cls_tokens = 1 if has_one_token(args) else len({teacher["name"] for teacher in args["teachers"]})
        multiple = args.get("register_multiple")
        # Zero registers count as not set.
        num_registers = args.get("cpe_num_registers") or (multiple - num_cls_tokens % multiple if multiple else 0)
    return {
        "num_cls_tokens": num_cls_tokens,
        "num_registers": num_registers,
        "summary_idxs": [0] if has_one_token(args) else sorted(positions.values()),
    }


def teacher_token_index(args: Mapping[str, Any], name: str, head_index: int | None = None) -> int:
    """Return the token that a teacher's summary head reads.

    That of its first entry: the slot that the entry names, or its position among all entries of `teachers`. A slot
    behind the class tokens is a register, behind those a patch.

    Args:
        args: Arguments of the training run.
        name: The teacher's.
        head_index: The token that the `config.json` of a Hub folder names, where it does.

    Raises:
        ValueError: If `teachers` has no such entry.
    """
    if has_one_token(args):
        return 0
    if head_index is not None:
        return head_index
    for position, teacher in enumerate(args["teachers"]):
        if teacher["name"] == name:
            slot = teacher.get("token_slot")
            return position if slot is None else slot
    raise ValueError(f"`teachers` must have an entry of the adaptor {name!r}, or its config a `head_idx`.")


def _adaptors(config: dict[str, Any]) -> list[dict[str, Any]]:
    args, adaptors = config["args"], []
    described = config.get("adaptor_configs") or {}
    for name in (name for name in config.get("adaptor_names") or [] if name in described):
        heads = described[name]
        summary, feature = heads["summary"], heads["feature"]
        factor = feature.get("upsample_factor") or 1
        adaptors.append(
            {
                "name": name,
                "token_index": teacher_token_index(args, name, heads.get("head_idx")),
                "summary_dim": summary["output_dim"],
                "hidden_size": summary["hidden_dim"],
                "num_inner_blocks": summary["num_inner"],
                **_head_versions(args, name),
                "upsample_factor": factor,
                "feature_dim": feature["output_dim"] // factor**2,
                "feature_hidden_size": feature["hidden_dim"],
                "feature_num_inner_blocks": feature["num_inner"],
            }
        )
    return adaptors


def _head_versions(args: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the versions of a teacher's two MLPs: its own settings override the run's, for each head apart.

    A Hub folder may describe an adaptor of which its run lists no teacher.
    """
    teacher: Mapping[str, Any] = next((teacher for teacher in args["teachers"] if teacher["name"] == name), {})
    summary = teacher.get("mlp_version") or args["mlp_version"]
    dense = teacher.get("spatial_mlp_version") or summary
    return {"mlp_version": summary, "feature_mlp_version": None if dense in (summary, "attn") else dense}


def _has_layer_scale(timm_model: str) -> bool:
    return _LAYER_SCALE_MODELS.match(timm_model) is not None


def _native_image_size(name: str, kwargs: dict[str, Any]) -> int | None:
    """Return the image side that the timm model is built for."""
    if "img_size" in kwargs:
        return kwargs["img_size"]
    if _has_layer_scale(name):
        return _LAYER_SCALE_MODELS_IMAGE_SIZE
    size = re.search(r"_(\d+)$", name)
    return int(size.group(1)) if size else None
