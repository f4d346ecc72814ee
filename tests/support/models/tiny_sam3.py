"""SAM3 small enough for tests, with random weights."""

from transformers import Sam3Config, Sam3Model


GRID = 4
SAM3_PX = GRID * 14
TRUNK_WIDTH = 32


def build_sam3() -> Sam3Model:
    """Return a model that takes images of `SAM3_PX` and texts of up to 16 of 64 tokens."""
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    trunk = {
        **small,
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": SAM3_PX,
        "pretrain_image_size": SAM3_PX,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    config = Sam3Config(
        vision_config={"backbone_config": trunk, "fpn_hidden_size": 32},
        text_config={
            **small,
            "model_type": "clip_text_model",
            "num_hidden_layers": 1,
            "vocab_size": 64,
            "projection_dim": 16,
            "max_position_embeddings": 16,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        geometry_encoder_config={**small, "num_layers": 1, "roi_size": 2},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    return Sam3Model(config).eval()
