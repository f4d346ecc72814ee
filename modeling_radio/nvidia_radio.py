"""Reads the configuration of NVIDIA's own repositories, where it is the argument list of the training run."""

import re
from typing import Any

from .releases_radio import DINO_FIELDS, RELEASES, SIZES


# DINOv2's ViTs with registers as students: whose shape they have, and whether with SwiGLU.
_DINO_STUDENTS = {"dino_v2_g_student": ("giant", True), "dino_v2_l_student": ("large", False)}
# NVIDIA's variants of the timm models with LayerScale, built for 592 px (DINOv2's 518 px in patches of 16).
_LAYER_SCALE_MODELS = re.compile(r"vit_(base|large)_patch16_v2_")
_LAYER_SCALE_MODELS_IMAGE_SIZE = 592


def is_nvidia_config(config: dict[str, Any]) -> bool:
    """Whether a `config.json` object is in NVIDIA's layout."""
    return isinstance(config.get("args"), dict) and "hidden_size" not in config


def config_fields_from_nvidia(config: dict[str, Any]) -> dict[str, Any]:
    """Translate NVIDIA's `config.json` into `RadioConfig` fields.

    Args:
        config: The parsed file: the training arguments under `args`, beside the adaptors' shapes.

    Returns:
        Keyword arguments of `RadioConfig`.

    Raises:
        ValueError: If the architecture is not one that RADIO students use.
    """
    args, version = config["args"], config.get("version")
    backbone = backbone_fields(args)
    fields = {
        **backbone,
        **token_fields(args),
        **version_fields(version, backbone["hidden_size"]),
        "max_resolution": config.get("max_resolution"),
        "preferred_resolution": list(config.get("preferred_resolution") or (512, 512)),
        "vitdet_window_size": config.get("vitdet_window_size"),
        "use_feature_normalizer": config.get("feature_normalizer_config") is not None,
        "adaptors": _adaptors(config),
    }
    intermediate = config.get("inter_feature_normalizer_config")
    if intermediate is not None:
        fields["num_intermediate_normalizers"] = intermediate["num_intermediates"]
        fields["intermediate_rotation_per_layer"] = intermediate["rot_per_layer"]
    return fields


def version_fields(version: str | None, hidden_size: int) -> dict[str, Any]:
    """Return the fields that only the published version tells: global blocks of ViTDet mode, position resizing.

    Args:
        version: Name of the version; None and unknown ones tell nothing.
        hidden_size: Width of the network, since a file may name a version whose shape it has not.
    """
    release = RELEASES.get(version or "")
    told = {} if release is None else release.fields
    is_its_width = release is not None and SIZES[release.size].hidden_size == hidden_size
    return {
        **{name: value for name, value in told.items() if name in ("vitdet_num_global", "vitdet_num_windowed")},
        "version": version,
        "pos_embed_align_corners": is_its_width and told.get("pos_embed_align_corners", False),
    }


def backbone_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from the student's architecture name and its keyword arguments.

    Raises:
        ValueError: If the architecture is not one that RADIO students use.
    """
    name, kwargs = args["model"], args.get("model_kwargs") or {}
    if name in _DINO_STUDENTS:
        size_name, use_swiglu = _DINO_STUDENTS[name]
        shape = {**SIZES[size_name].config_fields(), **DINO_FIELDS}
        return {**shape, "use_swiglu_ffn": use_swiglu, "max_img_size": args["cpe_max_size"]}
    match = re.match(r"vit_([a-zA-Z0-9]+(?:_v2)?)_patch(\d+)", name)
    if match is None or match.group(1) not in SIZES:
        known = [*(f"vit_{size}_patch*" for size in SIZES), *_DINO_STUDENTS]
        raise ValueError(f"`args.model` must be one of {known}, got {name!r}.")
    if kwargs.get("scaled_ln"):
        raise ValueError("`args.model_kwargs.scaled_ln` (layer norms scaled by depth) is not supported.")
    size = SIZES[match.group(1)]
    return {
        "hidden_size": kwargs.get("embed_dim", size.hidden_size),
        "num_hidden_layers": kwargs.get("depth", size.num_hidden_layers),
        "num_attention_heads": kwargs.get("num_heads", size.num_attention_heads),
        "mlp_ratio": float(kwargs.get("mlp_ratio", size.mlp_ratio)),
        "patch_size": int(match.group(2)),
        "max_img_size": args["cpe_max_size"],
        # NVIDIA's code crops positions only where the table is larger than the timm model's own image size.
        "use_cropped_positions": _native_image_size(name, kwargs) != args["cpe_max_size"],
        "use_layer_scale": _LAYER_SCALE_MODELS.match(name) is not None,
    }


def token_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return class tokens, registers and summary tokens as the training arguments imply them."""
    names = teacher_names(args)
    if args.get("cls_token_per_teacher", True):
        num_cls_tokens = len(names)
        summaries = {teacher["name"] for teacher in args["teachers"] if teacher.get("use_summary", True)}
        summary_idxs = [index for index, name in enumerate(names) if name in summaries]
    else:
        num_cls_tokens, summary_idxs = 1, [0]
    multiple = args.get("register_multiple")
    if args.get("cpe_num_registers") is not None:
        num_registers = args["cpe_num_registers"]
    else:
        num_registers = multiple - num_cls_tokens % multiple if multiple else 0
    return {"num_cls_tokens": num_cls_tokens, "num_registers": num_registers, "summary_idxs": summary_idxs}


def teacher_names(args: dict[str, Any]) -> list[str]:
    """Return the distinct teacher names in order; a teacher may appear in several training partitions."""
    return list(dict.fromkeys(teacher["name"] for teacher in args["teachers"]))


def teacher_token_index(args: dict[str, Any], name: str) -> int:
    """Return the class token of a teacher."""
    return teacher_names(args).index(name) if args.get("cls_token_per_teacher", True) else 0


def _adaptors(config: dict[str, Any]) -> list[dict[str, Any]]:
    args, adaptors = config["args"], []
    for name in config.get("adaptor_names") or []:
        summary, feature = (config["adaptor_configs"][name][key] for key in ("summary", "feature"))
        adaptors.append(
            {
                "name": name,
                "token_index": teacher_token_index(args, name),
                "summary_dim": summary["output_dim"],
                "hidden_size": summary["hidden_dim"],
                "num_inner_blocks": summary["num_inner"],
                "mlp_version": args["mlp_version"],
                "upsample_factor": feature["upsample_factor"] or 1,
                "feature_dim": feature["output_dim"] // (feature["upsample_factor"] or 1) ** 2,
                "feature_hidden_size": feature["hidden_dim"],
                "feature_num_inner_blocks": feature["num_inner"],
            }
        )
    return adaptors


def _native_image_size(name: str, kwargs: dict[str, Any]) -> int | None:
    """Return the image side that the timm model is built for."""
    if "img_size" in kwargs:
        return kwargs["img_size"]
    if _LAYER_SCALE_MODELS.match(name):
        return _LAYER_SCALE_MODELS_IMAGE_SIZE
    size = re.search(r"_(\d+)$", name)
    return int(size.group(1)) if size else None
