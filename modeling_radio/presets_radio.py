"""Architectures by name: the published RADIO generations and small ones of ours. Data only.

Widths, depths and prefix tokens: DESIGN of the three generations as published in their checkpoints (C-RADIOv4 tech
report, https://arxiv.org/abs/2601.17237; RADIOv2.5, https://arxiv.org/abs/2412.07679). The split of C-RADIOv4's ten
prefix tokens into 3 class and 7 register tokens is the one that NVIDIA's TAO toolkit documents.
"""

from typing import Any


_SIZE_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIZE_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_SIZE_SO400M = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "mlp_ratio": 4304 / 1152 + 1e-6,  # the product with 1152 must not fall below 4304
}
_SIZE_H = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}

# Four teachers with a class token each; the segmenter (SAM) has no part in the summary.
_FOUR_TEACHERS = {"num_cls_tokens": 4, "num_registers": 4, "summary_idxs": [0, 1, 2]}
# SigLIP2-g, DINOv3-7B, SAM3.
_THREE_TEACHERS = {"num_cls_tokens": 3, "num_registers": 7, "summary_idxs": [0, 1]}

# DINOv2's ViT-g/14: SwiGLU, LayerScale, final norm, biased patches, one class token for all teachers.
_SIZE_G = {
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "patch_size": 14,
    "max_img_size": 1792,
    "num_cls_tokens": 1,
    "num_registers": 4,
    "summary_idxs": [0],
    "use_swiglu_ffn": True,
    "use_layer_scale": True,
    "use_final_norm": True,
    "use_patch_bias": True,
    "vitdet_num_global": 8,
    "preferred_resolution": [896, 896],
}

_LAYER_SCALE = {"use_layer_scale": True}
_SIZE_GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}

PRESETS: dict[str, dict[str, Any]] = {
    "radio_v2.5-b": {**_SIZE_B, **_FOUR_TEACHERS, "preferred_resolution": [768, 768]},
    "radio_v2.5-l": {**_SIZE_L, **_FOUR_TEACHERS, "preferred_resolution": [768, 768]},
    "radio_v2.5-h": {**_SIZE_H, **_FOUR_TEACHERS, "preferred_resolution": [768, 768]},
    "radio_v2.5-g": _SIZE_G,
    "c-radio_v3-b": {**_SIZE_B, **_FOUR_TEACHERS, **_LAYER_SCALE, "pos_embed_align_corners": True},
    "c-radio_v3-l": {**_SIZE_L, **_FOUR_TEACHERS, **_LAYER_SCALE},
    "c-radio_v3-h": {**_SIZE_H, **_FOUR_TEACHERS, "pos_embed_align_corners": True},
    "c-radio_v3-g": {**_SIZE_GIANT, **_FOUR_TEACHERS},
    "c-radio_v4-so400m": {**_SIZE_SO400M, **_THREE_TEACHERS},
    "c-radio_v4-h": {**_SIZE_H, **_THREE_TEACHERS},
    # Ours, for people without a cluster: DeiT's Ti and S widths (https://arxiv.org/abs/2012.12877), and one for tests.
    "radio-s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, **_THREE_TEACHERS},
    "radio-ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, **_THREE_TEACHERS},
    "radio-test": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_img_size": 256,
        "preferred_resolution": [64, 64],
        **_THREE_TEACHERS,
    },
}
