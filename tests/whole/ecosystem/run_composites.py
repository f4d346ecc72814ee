"""Builds or reopens models of transformers with a folder's backbone, where this package is absent.

Arguments: `save` or `open`, the backbone's folder, a folder for the models and a file for their outputs.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, DetrConfig, LlamaConfig


PYRAMID = {"use_feature_pyramid": True, "feature_pyramid_size": 16}
THREE_LEVELS = PYRAMID | {"out_indices": [1, 2, 3]}
SEQUENCES = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
NECK = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
DETR |= {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("attention_heads", 2), ("ffn_dim", 32))
}
RT_DETR = DETR | {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16] * 3,
    "decoder_in_channels": [32] * 3,
    "feat_strides": [8, 16, 32],
    "hidden_expansion": 1.0,
    "freeze_backbone_batch_norms": False,
}
MASKS = {"hidden_dim": 32, "mask_feature_size": 32, "num_attention_heads": 2, "num_queries": 5, "encoder_layers": 1}
LANGUAGE = {
    "vocab_size": 9,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

COMPOSITES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "UperNetForSemanticSegmentation": ("UperNetConfig", PYRAMID, {"hidden_size": 32, "auxiliary_in_channels": 16}),
    "Mask2FormerForUniversalSegmentation": (
        "Mask2FormerConfig",
        PYRAMID,
        MASKS | {"feature_size": 32, "decoder_layers": 2, "dim_feedforward": 32, "encoder_feedforward_dim": 32},
    ),
    "MaskFormerForInstanceSegmentation": (
        "MaskFormerConfig",
        PYRAMID,
        {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": DetrConfig(**DETR)},
    ),
    "DetrForObjectDetection": ("DetrConfig", {}, DETR),
    "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", {}, DETR),
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", THREE_LEVELS, DETR | {"num_feature_levels": 3}),
    "RTDetrForObjectDetection": ("RTDetrConfig", THREE_LEVELS, RT_DETR),
    "RTDetrV2ForObjectDetection": ("RTDetrV2Config", THREE_LEVELS, RT_DETR),
    "DFineForObjectDetection": ("DFineConfig", THREE_LEVELS, RT_DETR),
    "DPTForDepthEstimation": (
        "DPTConfig",
        SEQUENCES,
        NECK | {"hidden_size": 32, "reassemble_factors": [4, 2, 1, 0.5]},
    ),
    "DepthAnythingForDepthEstimation": (
        "DepthAnythingConfig",
        SEQUENCES,
        NECK | {"reassemble_hidden_size": 32, "patch_size": 16},
    ),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {},
        {"text_config": LlamaConfig(**LANGUAGE), "image_token_index": 5, "vision_feature_select_strategy": "full"},
    ),
}
"""Models that docs/how-to/libraries.md names: class of the configuration, options of ours, and their own."""


@torch.no_grad()
def outputs_of(model: Any) -> list[torch.Tensor]:
    """Return all that a model says about one picture."""
    inputs = {"pixel_values": torch.linspace(0, 1, 3 * 128 * 128).view(1, 3, 128, 128)}
    if model.config.model_type == "llava":
        inputs["input_ids"] = torch.full((1, 10 + 64), 5)  # class tokens, registers and patches
    return [each for each in model.eval()(**inputs).to_tuple() if torch.is_tensor(each)]


def main(mode: str, backbone: str, folder: str, file: str) -> None:
    """Save or open all models, and write their outputs."""
    outputs = {}
    for name, (config_name, ours, theirs) in COMPOSITES.items():
        part = "vision_config" if name.startswith("Llava") else "backbone_config"
        given = {part: AutoConfig.from_pretrained(backbone, trust_remote_code=True, **ours)}
        model_class, path = getattr(transformers, name), Path(folder, name)
        if mode == "save":
            torch.manual_seed(0)
            model = model_class(getattr(transformers, config_name)(**given, **theirs))
            model.save_pretrained(path)
        else:
            model = model_class.from_pretrained(path, **given)
        outputs[name] = outputs_of(model)
    torch.save(outputs, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
