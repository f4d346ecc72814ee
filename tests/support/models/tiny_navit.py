"""A tiny NaViT: rotary positions, three class tokens, two adaptors."""

from typing import Any

import torch

from modeling_radio import RadioConfig, RadioModel


FIELDS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_cls_tokens": 2,
    "num_registers": 1,
    "summary_idxs": [0, 1],
    "patch_size": 4,
    "max_img_size": 256,
    "preferred_resolution": [32, 32],
    "use_patch_bias": True,
    "use_final_norm": True,
    "vitdet_num_windowed": 1,
    "navit": {},
}
ADAPTORS = [
    {"name": "teacher_a", "token_index": 0, "summary_dim": 6, "feature_dim": 10, "hidden_size": 16},
    {"name": "teacher_b", "token_index": 1, "feature_dim": 4, "hidden_size": 16, "upsample_factor": 2},
]


def build_navit(options: dict[str, Any] | None = None, **overrides: Any) -> RadioModel:
    """Return the network with fixed random weights, for the options of `RadioConfig.navit`."""
    torch.manual_seed(0)
    return RadioModel(RadioConfig(**{**FIELDS, "navit": options or {}, "adaptors": ADAPTORS, **overrides})).eval()
