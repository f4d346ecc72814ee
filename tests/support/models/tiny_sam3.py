"""SAM3 small enough for tests, with random weights: all four models of transformers."""

from typing import Any

import torch
from transformers import (
    Sam3Config,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)


GRID = 4
SAM3_PX = GRID * 14
TRUNK_WIDTH = 32
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}


def _vision(width: int) -> dict[str, Any]:
    trunk = {
        **SMALL,
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": SAM3_PX,
        "pretrain_image_size": SAM3_PX,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    sizes = [[factor * GRID, factor * GRID] for factor in (4, 2, 1)]
    return {
        "model_type": "sam3_vision_model",
        "backbone_config": trunk,
        "fpn_hidden_size": width,
        "backbone_feature_sizes": sizes,
    }


def _detector(width: int = 32) -> dict[str, Any]:
    inner = {**SMALL, "hidden_size": width}
    return {
        "vision_config": _vision(width),
        "text_config": {
            **SMALL,
            "model_type": "clip_text_model",
            "num_hidden_layers": 1,
            "vocab_size": 64,
            "projection_dim": 16,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        "geometry_encoder_config": {**inner, "num_layers": 1, "roi_size": 2},
        "detr_encoder_config": {**inner, "num_layers": 1},
        "detr_decoder_config": {**inner, "num_layers": 1, "num_queries": 5},
        "mask_decoder_config": {"hidden_size": width, "num_attention_heads": 2},
    }


def _tracker(width: int = 128) -> dict[str, Any]:
    decoder = {"hidden_size": width, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32}
    return {
        "vision_config": _vision(width),
        "prompt_encoder_config": {"hidden_size": width, "image_size": SAM3_PX, "patch_size": 14},
        "mask_decoder_config": decoder,
    }


def _memory(width: int = 128) -> dict[str, Any]:
    return {
        "image_size": SAM3_PX,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [GRID, GRID],
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": width,
    }


def build_sam3() -> Sam3Model:
    """Return a model that takes images of `SAM3_PX` and texts of up to 32 of 64 tokens."""
    return Sam3Model(Sam3Config(**_detector())).eval()


def build_tracker() -> Sam3TrackerModel:
    """Return a model that gives masks of points and boxes."""
    return _vary(Sam3TrackerModel(Sam3TrackerConfig(**_tracker())))


def build_tracker_video() -> Sam3TrackerVideoModel:
    """Return a model that follows points and boxes through a video."""
    return _vary(Sam3TrackerVideoModel(Sam3TrackerVideoConfig(**_tracker(), **_memory())))


def build_video() -> Sam3VideoModel:
    """Return a model that follows words through a video."""
    tracker = {"model_type": "sam3_tracker_video", **_tracker(), **_memory()}
    detector = {"model_type": "sam3", **_detector(128)}
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=4 * GRID)
    return _vary(Sam3VideoModel(config))


def _vary(model: Any) -> Any:
    """Let all weights matter: transformers' own begin small, and some at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
            if parameter.std(unbiased=False) == 0:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
