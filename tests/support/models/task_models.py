"""Tiny models of every public class and every shape of network, and images for them."""

from typing import Any

import torch

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioModel,
    RadioPreTrainedModel,
)


SIZE = (48, 80)  # 3 x 5 patches: odd, which DPT rounds up


def tiny_config(**fields: Any) -> RadioConfig:
    """Return the smallest preset with small heads."""
    small = {
        "dpt_hidden_size": 16,
        "detection_hidden_size": 32,
        "detection_num_queries": 12,
        "detection_num_groups": 2,
        "detection_num_layers": 2,
        "detection_window_size": None,
    }
    return RadioConfig.from_preset("radio-test", **{"num_labels": 3, **small, **fields})


def images(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Return noise in [0, 1], `(count, 3, height, width)`."""
    return torch.rand(count, 3, *size)


ADAPTORS = [{"name": "siglip2-g", "summary_dim": 12, "feature_dim": 20, "hidden_size": 24}]

EVERY_MODEL: dict[str, tuple[type[RadioPreTrainedModel], dict[str, Any]]] = {
    "backbone with adaptors": (RadioModel, {"adaptors": ADAPTORS, "use_feature_normalizer": True}),
    "maps": (RadioBackbone, {}),
    "pyramid": (RadioBackbone, {"use_feature_pyramid": True}),
    "classifier": (RadioForImageClassification, {"classifier_pooling": "summary_and_features"}),
    "linear segmenter": (RadioForSemanticSegmentation, {}),
    "DPT segmenter": (RadioForSemanticSegmentation, {"segmentation_head": "dpt"}),
    "depth": (RadioForDepthEstimation, {}),
    "detector": (RadioForObjectDetection, {"detection_window_size": 2}),
    "instance segmenter": (RadioForInstanceSegmentation, {}),
    "universal segmenter": (RadioForUniversalSegmentation, {}),
}
"""By name each model that is made of a configuration alone, and fields of it."""
# Summaries and maps with adaptors' heads; a head of convolutions that reads several blocks; queries and masks of
# RF-DETR's decoder, which stays in float32. `whole/test_contract.py` tries all models.
THREE_MODELS = ("backbone with adaptors", "DPT segmenter", "instance segmenter")


def build(name: str) -> RadioPreTrainedModel:
    """Return a tiny random one of `EVERY_MODEL`, in evaluation mode."""
    model_class, fields = EVERY_MODEL[name]
    return model_class(tiny_config(**fields)).eval()


NETWORK_ADAPTORS = [
    {"name": "siglip2-g", "summary_dim": 24, "feature_dim": 20, "hidden_size": 40, "feature_head": "attention"},
    {"name": "dino_v3", "token_index": 1, "summary_dim": 16, "feature_dim": 16, "hidden_size": 40},
    {"name": "sam3", "token_index": 2, "feature_dim": 8, "hidden_size": 40, "upsample_factor": 2},
]
SAM_V1 = {"name": "sam", "token_index": 0, "summary_dim": 12, "feature_dim": 8, "hidden_size": 40, "mlp_version": "v1"}
TINY_NETWORK: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_img_size": 256,
    "mlp_ratio": 4.0,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "radio_v2": {"preset": "radio_v2.5-h", "num_registers": 0, "use_cropped_positions": False, "adaptors": [SAM_V1]},
    "radio_v2.5": {"preset": "radio_v2.5-l", "use_feature_normalizer": True, "num_intermediate_normalizers": 4},
    "radio_v2.5-g": {"preset": "radio_v2.5-g", "max_img_size": 224, "vitdet_num_global": 2, "adaptors": [SAM_V1]},
    "c-radio_v3": {"preset": "c-radio_v3-h", "use_layer_scale": True},
    "c-radio_v4": {"preset": "c-radio_v4-h"},
    "c-radio_v4-1d": {
        "preset": "c-radio_v4-1d-h",
        "downscale_levels": [2],
        "decoder_depth": 2,
        "decoder_upscale_levels": [1],
        "filler_grid_size": 8,
        "qk_norm": True,
        "use_final_norm": True,
    },
}
"""By name each shape of network that the presets have, with tiny sizes."""


def build_network(name: str, **overrides: Any) -> RadioModel:
    """Return a tiny random model with one of `NETWORKS` and three adaptors, in evaluation mode."""
    fields = {**TINY_NETWORK, "adaptors": NETWORK_ADAPTORS, **NETWORKS[name], **overrides}
    fields["adaptors"] = [{**adaptor, "feature_num_attention_heads": 4} for adaptor in fields["adaptors"]]
    return RadioModel(RadioConfig.from_preset(fields.pop("preset"), **fields)).eval()


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return all tensors in what a model returned, nested ones too."""
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in ([item] if torch.is_tensor(item) else tensors_of(item))]
