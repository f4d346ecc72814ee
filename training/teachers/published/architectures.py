"""Architectures of the teachers that NVIDIA's students learned from, so that they can be built without a download.

`options: {weights: random}` of a teacher builds its network from here: on the meta device to plan a run, on a GPU to
measure one. Only what decides shapes is here, and the parameter counts of the papers check it (C-RADIOv4, AM-RADIO
table 1); with pretrained weights, the checkpoint's own configuration counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def published_config(source: str) -> Any:
    """Return the configuration of the vision network of a Hub id, or None where it is not one of these."""
    build = _PUBLISHED.get(source)
    return None if build is None else build()


def _dfn_clip_h() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        projection_dim=1024,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        image_size=378,
    )


def _siglip_so400m() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        image_size=384,
    )


def _siglip2_giant() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=40,
        num_attention_heads=16,
        patch_size=16,
        image_size=384,
    )


def _dinov2_giant() -> Any:
    from transformers import Dinov2WithRegistersConfig

    return Dinov2WithRegistersConfig(
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=24,
        use_swiglu_ffn=True,
        num_register_tokens=4,
        patch_size=14,
        image_size=518,
    )


def _dinov3_7b() -> Any:
    from transformers import DINOv3ViTConfig

    return DINOv3ViTConfig(
        hidden_size=4096,
        intermediate_size=8192,
        num_hidden_layers=40,
        num_attention_heads=32,
        use_gated_mlp=True,
        query_bias=False,
        value_bias=False,
        num_register_tokens=4,
        patch_size=16,
    )


def _sam_huge() -> Any:
    from transformers import SamVisionConfig

    return SamVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        global_attn_indexes=[7, 15, 23, 31],
    )


def _sam3() -> Any:
    from transformers import Sam3ViTConfig

    return Sam3ViTConfig()


def _radio(version: str) -> Any:
    """Return a C-RADIOv4 with its adaptors; the width of their MLPs is that of AM-RADIO 3.2, the widest teacher's."""
    from modeling_radio import RadioConfig

    adaptors = [
        {"name": "siglip2-g", "summary_dim": 1536, "feature_dim": 1536, "feature_head": "attention"},
        {"name": "dino_v3", "summary_dim": 4096, "feature_dim": 4096},
        {"name": "sam3", "feature_dim": 1024},
    ]
    entries = [{**adaptor, "token_index": index, "hidden_size": 4096} for index, adaptor in enumerate(adaptors)]
    return RadioConfig.from_preset(version, adaptors=entries)


_PUBLISHED: dict[str, Callable[[], Any]] = {
    "apple/DFN5B-CLIP-ViT-H-14-378": _dfn_clip_h,
    "google/siglip-so400m-patch14-384": _siglip_so400m,
    "google/siglip2-giant-opt-patch16-384": _siglip2_giant,
    "facebook/dinov2-with-registers-giant": _dinov2_giant,
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": _dinov3_7b,
    "facebook/sam-vit-huge": _sam_huge,
    "facebook/sam3": _sam3,
    "nvidia/C-RADIOv4-H": lambda: _radio("c-radio_v4-h"),
    "nvidia/C-RADIOv4-SO400M": lambda: _radio("c-radio_v4-so400m"),
}
