"""Architectures of published teachers, to build them without a download.

`options: {weights: random}` of a teacher builds its network from this file: on the meta device to plan a run, on a GPU
to measure one. It has only the fields that decide shapes; with pretrained weights, the checkpoint's own configuration
counts. Tests compare the numbers of parameters with those of papers and of timm's networks of the same names. timm
itself has the architectures of its networks by name.
"""

from __future__ import annotations

from typing import Any

from modeling_radio.presets_radio import Size


_SMALL, _BASE, _LARGE, _HUGE = Size(384, 12, 6), Size(768, 12, 12), Size(1024, 24, 16), Size(1280, 32, 16)
_SO400M = Size(1152, 27, 16, 4304)


def published_config(source: str) -> Any:
    """Return the configuration of the vision network of a Hub id, or None if it is not in this file."""
    if source not in PUBLISHED:
        return None
    name, fields = PUBLISHED[source]
    if name == "RadioConfig":
        from modeling_radio import RadioConfig

        return RadioConfig.from_preset(**fields)
    import transformers

    return getattr(transformers, name)(**fields)


def _without_mlp(size: Size) -> dict[str, Any]:
    """Return the fields of configurations that have the MLP's width as a ratio."""
    return {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
    }


def _with_mlp(size: Size) -> dict[str, Any]:
    return {**_without_mlp(size), "intermediate_size": size.intermediate_size or 4 * size.hidden_size}


def _clip(size: Size, patch_size: int, image_size: int, projection_dim: int) -> tuple[str, dict[str, Any]]:
    widths = {"patch_size": patch_size, "image_size": image_size, "projection_dim": projection_dim}
    return "CLIPVisionConfig", {**_with_mlp(size), **widths}


def _siglip(size: Size, patch_size: int, image_size: int) -> tuple[str, dict[str, Any]]:
    return "SiglipVisionConfig", {**_with_mlp(size), "patch_size": patch_size, "image_size": image_size}


def _flexible_siglip(size: Size) -> tuple[str, dict[str, Any]]:
    return "Siglip2VisionConfig", {**_with_mlp(size), "patch_size": 16, "num_patches": 256}


def _tipsv2(size: Size, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "Tipsv2VisionConfig", {**_without_mlp(size), "patch_size": 14, "image_size": 448, **fields}


def _dinov2(size: Size, num_registers: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    name = "Dinov2WithRegistersConfig" if num_registers else "Dinov2Config"
    registers = {"num_register_tokens": num_registers} if num_registers else {}
    return name, {**_without_mlp(size), "patch_size": 14, "image_size": 518, **registers, **fields}


def _dinov3(size: Size, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "DINOv3ViTConfig", {**_with_mlp(size), "num_register_tokens": 4, "patch_size": 16, **fields}


def _sam(size: Size, global_blocks: list[int]) -> tuple[str, dict[str, Any]]:
    return "SamVisionConfig", {**_without_mlp(size), "global_attn_indexes": global_blocks}


def _sam2(
    width: int, blocks: list[int], global_blocks: list[int], *, heads: int = 1, **fields: Any
) -> tuple[str, dict[str, Any]]:
    stages = range(4)
    return "Sam2HieraDetConfig", {
        "hidden_size": width,
        "num_attention_heads": heads,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": [width * 2**stage for stage in stages],
        "num_attention_heads_per_stage": [heads * 2**stage for stage in stages],
        "global_attention_blocks": global_blocks,
        **fields,
    }


def _radio(version: str, *teachers: tuple[str, int | None, int], **of_first: Any) -> tuple[str, dict[str, Any]]:
    """Return a RADIO with its adaptors; the width of their MLPs is that of AM-RADIO 3.2, the widest teacher's."""
    widest = max(max(summary_dim or 0, feature_dim) for _, summary_dim, feature_dim in teachers)
    keys = ("name", "summary_dim", "feature_dim")
    adaptors = [
        {**dict(zip(keys, teacher, strict=True)), "token_index": index, "hidden_size": widest}
        for index, teacher in enumerate(teachers)
    ]
    adaptors[0] |= of_first
    return "RadioConfig", {"name": version, "adaptors": adaptors}


_V3_TEACHERS = (("clip", 1024, 1280), ("siglip2", 1152, 1152), ("dino_v2", 1536, 1536), ("sam", None, 1280))
_V4_TEACHERS = (("siglip2-g", 1536, 1536), ("dino_v3_7b", 4096, 4096), ("sam3", None, 1024))
_GATED = {"use_gated_mlp": True}
_SWIGLU = {"use_swiglu_ffn": True}

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "openai/clip-vit-base-patch32": _clip(_BASE, 32, 224, 512),
    "openai/clip-vit-base-patch16": _clip(_BASE, 16, 224, 512),
    "openai/clip-vit-large-patch14": _clip(_LARGE, 14, 224, 768),
    "openai/clip-vit-large-patch14-336": _clip(_LARGE, 14, 336, 768),
    "apple/DFN5B-CLIP-ViT-H-14": _clip(_HUGE, 14, 224, 1024),
    "apple/DFN5B-CLIP-ViT-H-14-378": _clip(_HUGE, 14, 378, 1024),
    **{f"google/siglip-base-patch16-{side}": _siglip(_BASE, 16, side) for side in (224, 256, 384, 512)},
    "google/siglip-base-patch16-256-multilingual": _siglip(_BASE, 16, 256),
    **{f"google/siglip-large-patch16-{side}": _siglip(_LARGE, 16, side) for side in (256, 384)},
    **{f"google/siglip-so400m-patch14-{side}": _siglip(_SO400M, 14, side) for side in (224, 384)},
    "google/siglip-so400m-patch16-256-i18n": _siglip(_SO400M, 16, 256),
    "google/siglip2-base-patch32-256": _siglip(_BASE, 32, 256),
    **{f"google/siglip2-base-patch16-{side}": _siglip(_BASE, 16, side) for side in (224, 256, 384, 512)},
    **{f"google/siglip2-large-patch16-{side}": _siglip(_LARGE, 16, side) for side in (256, 384, 512)},
    **{f"google/siglip2-so400m-patch14-{side}": _siglip(_SO400M, 14, side) for side in (224, 384)},
    **{f"google/siglip2-so400m-patch16-{side}": _siglip(_SO400M, 16, side) for side in (256, 384, 512)},
    **{f"google/siglip2-giant-opt-patch16-{side}": _siglip(Size(1536, 40, 16), 16, side) for side in (256, 384)},
    "google/siglip2-base-patch16-naflex": _flexible_siglip(_BASE),
    "google/siglip2-so400m-patch16-naflex": _flexible_siglip(_SO400M),
    "google/tipsv2-b14": _tipsv2(_BASE),
    "google/tipsv2-l14": _tipsv2(_LARGE),
    "google/tipsv2-so400m14": _tipsv2(_SO400M, mlp_ratio=4304 / 1152),
    "google/tipsv2-g14": _tipsv2(Size(1536, 40, 24), **_SWIGLU),
    **{
        f"facebook/dinov2-{registers}{name}": _dinov2(size, num_registers, **fields)
        for registers, num_registers in (("", 0), ("with-registers-", 4))
        for name, size, fields in (
            ("small", _SMALL, {}),
            ("base", _BASE, {}),
            ("large", _LARGE, {}),
            ("giant", Size(1536, 40, 24), _SWIGLU),
        )
    },
    "facebook/dinov3-vits16-pretrain-lvd1689m": _dinov3(_SMALL),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": _dinov3(_SMALL, **_GATED),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": _dinov3(_BASE),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _dinov3(_LARGE),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": _dinov3(Size(1280, 32, 20), **_GATED),
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": _dinov3(
        Size(4096, 40, 32, 8192), **_GATED, query_bias=False, value_bias=False
    ),
    "facebook/sam-vit-base": _sam(_BASE, [2, 5, 8, 11]),
    "facebook/sam-vit-large": _sam(_LARGE, [5, 11, 17, 23]),
    "facebook/sam-vit-huge": _sam(_HUGE, [7, 15, 23, 31]),
    "facebook/sam2.1-hiera-tiny": _sam2(96, [1, 2, 7, 2], [5, 7, 9]),
    "facebook/sam2.1-hiera-small": _sam2(96, [1, 2, 11, 2], [7, 10, 13]),
    "facebook/sam2.1-hiera-base-plus": _sam2(
        112, [2, 3, 16, 3], [12, 16, 20], heads=2, window_positional_embedding_background_size=[14, 14]
    ),
    "facebook/sam2.1-hiera-large": _sam2(
        144, [2, 6, 36, 4], [23, 33, 43], heads=2, window_size_per_stage=[8, 4, 16, 8]
    ),
    "facebook/sam3": ("Sam3ViTConfig", {}),
    "nvidia/C-RADIOv3-B": _radio("c-radio_v3-b", *_V3_TEACHERS),
    "nvidia/C-RADIOv3-L": _radio("c-radio_v3-l", *_V3_TEACHERS),
    "nvidia/C-RADIOv3-H": _radio("c-radio_v3-h", *_V3_TEACHERS),
    "nvidia/C-RADIOv3-g": _radio("c-radio_v3-g", *_V3_TEACHERS),
    "nvidia/C-RADIOv4-SO400M": _radio("c-radio_v4-so400m", *_V4_TEACHERS, feature_head="attention"),
    "nvidia/C-RADIOv4-H": _radio("c-radio_v4-h", *_V4_TEACHERS, feature_head="attention"),
}
"""Class and fields of the configuration by Hub id."""
