"""What tests of the task models share: tiny configurations of them, and images."""

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


def build(name: str) -> RadioPreTrainedModel:
    """Return a tiny random one of `EVERY_MODEL`, in evaluation mode."""
    model_class, fields = EVERY_MODEL[name]
    return model_class(tiny_config(**fields)).eval()


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return all tensors in what a model returned, nested ones too."""
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in ([item] if torch.is_tensor(item) else tensors_of(item))]
