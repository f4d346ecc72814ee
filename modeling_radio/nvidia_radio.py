"""Reads the configuration of NVIDIA's own repositories, where it is the argument list of the training run."""

import re
from typing import Any


# Width, depth and heads of the timm architectures that NVIDIA's students are named after.
_TIMM_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "so400m": (1152, 27, 16),
    "so400m_v2": (1152, 27, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),  # NVIDIA's own; timm's narrower one has the same name
}
# The products with 1152 must not fall below 4304 and 4320 (a multiple of 32, for tensor parallelism in FP8).
_MLP_RATIOS = {"so400m": 4304 / 1152 + 1e-6, "so400m_v2": 4320 / 1152 + 1e-6}
# DINOv2's ViTs with registers as students; widths, depths and heads are fixed by name.
_DINO_STUDENTS = {
    "dino_v2_g_student": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "use_swiglu_ffn": True,
    },
    "dino_v2_l_student": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
# NVIDIA's variants of the timm models with LayerScale, built for 592 px (DINOv2's 518 px in patches of 16).
_LAYER_SCALE_MODELS = re.compile(r"vit_(base|large)_patch16_v2_")
_LAYER_SCALE_MODELS_IMAGE_SIZE = 592

# ViTDet blocks with global attention (or windowed blocks in between) that NVIDIA's hub code sets by version.
_VITDET_BY_VERSION = {
    "radio_v2.5-g": {"vitdet_num_global": 8},
    "radio_v2": {"vitdet_num_windowed": 5},
    "radio_v2.1": {"vitdet_num_windowed": 5},
    "c-radio_v2-g": {"vitdet_num_global": 8},
    "c-radio_v2-vlm-h": {"vitdet_num_global": 8},
}
# Released models (version, width) whose position table is resized with aligned corners: timm's vision_transformer.py
# names the two. NVIDIA's own code does so for none since June 2025.
_ALIGNED_MODELS = (("c-radio_v3-b", 768), ("c-radio_v3-h", 1280))


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
    """Return the fields that only the published version tells: global blocks of ViTDet mode, position resizing."""
    return {
        **_VITDET_BY_VERSION.get(version or "", {}),
        "version": version,
        "pos_embed_align_corners": (version, hidden_size) in _ALIGNED_MODELS,
    }


def backbone_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from the student's architecture name and its keyword arguments.

    Raises:
        ValueError: If the architecture is not one that RADIO students use.
    """
    name, kwargs = args["model"], args.get("model_kwargs") or {}
    fields = {"max_img_size": args["cpe_max_size"], "patch_size": _patch_size(name)}
    if name in _DINO_STUDENTS:
        return {
            **fields,
            **_DINO_STUDENTS[name],
            "use_layer_scale": True,
            "use_final_norm": True,
            "use_patch_bias": True,
        }
    match = re.match(r"vit_([a-zA-Z0-9]+(?:_v2)?)_patch", name)
    if match is None or match.group(1) not in _TIMM_SIZES:
        known = [f"vit_{size}_patch*" for size in _TIMM_SIZES] + list(_DINO_STUDENTS)
        raise ValueError(f"Unknown architecture `args.model` = {name!r}; known: {', '.join(known)}.")
    if kwargs.get("scaled_ln"):
        raise ValueError("`args.model_kwargs.scaled_ln` (layer norms scaled by depth) is not supported.")
    width, depth, heads = _TIMM_SIZES[match.group(1)]
    return {
        **fields,
        "hidden_size": kwargs.get("embed_dim", width),
        "num_hidden_layers": kwargs.get("depth", depth),
        "num_attention_heads": kwargs.get("num_heads", heads),
        "mlp_ratio": float(kwargs.get("mlp_ratio", _MLP_RATIOS.get(match.group(1), 4.0))),
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


def _patch_size(name: str) -> int:
    match = re.search(r"patch(\d+)", name)
    return int(match.group(1)) if match else 14
