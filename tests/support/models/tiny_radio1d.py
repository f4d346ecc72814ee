"""A tiny RADIO1D: one merging in three blocks, one splitting in two."""

from typing import Any

import torch

from modeling_radio import RadioConfig, RadioModel


FIELDS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_img_size": 128,
    "patch_size": 16,
    "num_cls_tokens": 2,
    "num_registers": 1,
    "summary_idxs": [0, 1],
    "downscale_levels": [1],
    "decoder_depth": 2,
}
ADAPTORS = [
    {"name": "teacher_a", "token_index": 0, "summary_dim": 6, "feature_dim": 10, "hidden_size": 16},
    {"name": "teacher_b", "token_index": 1, "feature_dim": 4, "hidden_size": 16, "upsample_factor": 2},
]


def build_radio1d(**overrides: Any) -> RadioModel:
    """Return the network with fixed random weights and two adaptors, one of them without a summary."""
    torch.manual_seed(0)
    return RadioModel(RadioConfig(**{**FIELDS, "adaptors": ADAPTORS, **overrides})).eval()
