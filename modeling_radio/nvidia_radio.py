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
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}
_SO400M_MLP_RATIO = 4304 / 1152 + 1e-6
_DINO_V2_G = "dino_v2_g_student"

# ViTDet blocks with global attention (or windowed blocks in between) that NVIDIA's hub code sets by version.
_VITDET_BY_VERSION = {
    "radio_v2.5-g": {"vitdet_num_global": 8},
    "radio_v2": {"vitdet_num_windowed": 5},
    "radio_v2.1": {"vitdet_num_windowed": 5},
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
        **_VITDET_BY_VERSION.get(version, {}),
        "version": version,
        "pos_embed_align_corners": (version, backbone["hidden_size"]) in _ALIGNED_MODELS,
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


def backbone_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from the student's architecture name and its keyword arguments."""
    name, kwargs = args["model"], args.get("model_kwargs") or {}
    fields = {"max_img_size": args["cpe_max_size"], "patch_size": _patch_size(name)}
    if name == _DINO_V2_G:
        return {
            **fields,
            "hidden_size": 1536,
            "num_hidden_layers": 40,
            "num_attention_heads": 24,
            "use_swiglu_ffn": True,
            "use_layer_scale": True,
            "use_final_norm": True,
            "use_patch_bias": True,
        }
    match = re.match(r"vit_([a-z0-9]+)_patch", name)
    if match is None or match.group(1) not in _TIMM_SIZES:
        raise ValueError(f"Unknown architecture `args.model` = {name!r}; known: vit_{{{','.join(_TIMM_SIZES)}}}_patch*.")
    width, depth, heads = _TIMM_SIZES[match.group(1)]
    native_size = re.search(r"_(\d+)$", name)
    default_ratio = _SO400M_MLP_RATIO if match.group(1) == "so400m" else 4.0
    return {
        **fields,
        "hidden_size": kwargs.get("embed_dim", width),
        "num_hidden_layers": kwargs.get("depth", depth),
        "num_attention_heads": kwargs.get("num_heads", heads),
        "mlp_ratio": float(kwargs.get("mlp_ratio", default_ratio)),
        # NVIDIA's code crops positions only where the table is larger than the timm model's own image size.
        "use_cropped_positions": native_size is None or int(native_size.group(1)) != args["cpe_max_size"],
        "use_layer_scale": "_v2_" in name,  # NVIDIA's own variant of the timm model, with LayerScale
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


def _patch_size(name: str) -> int:
    match = re.search(r"patch(\d+)", name)
    return int(match.group(1)) if match else 14
