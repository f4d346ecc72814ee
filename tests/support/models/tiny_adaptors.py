"""A tiny network with two adaptors, one of them without a summary."""

from typing import Any

import torch

from modeling_radio import RadioConfig, RadioModel


def build_model_with_adaptors(without_summary: str, **fields: Any) -> RadioModel:
    """Return the network with fixed random weights: "teacher_a" has a summary, the adaptor that is named has none."""
    torch.manual_seed(0)
    adaptor = {"token_index": 0, "summary_dim": 6, "feature_dim": 10, "hidden_size": 16}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "max_img_size": 64}
    tokens = {"num_cls_tokens": 2, "num_registers": 1}
    adaptors = [adaptor | {"name": "teacher_a"}, adaptor | {"name": without_summary, "summary_dim": None}]
    return RadioModel(RadioConfig(**{**shape, **tokens, "adaptors": adaptors, **fields})).eval()
