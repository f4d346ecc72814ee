from pathlib import Path

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A saved tiny model with two adaptors, one of them without a summary."""
    folder = tmp_path_factory.mktemp("tiny") / "radio-tiny"
    adaptor = {"token_index": 0, "hidden_size": 16, "feature_dim": 10}
    config = RadioConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        max_img_size=64,
        num_cls_tokens=2,
        num_registers=1,
        preferred_resolution=[32, 48],
        adaptors=[adaptor | {"name": "teacher_a", "summary_dim": 6}, adaptor | {"name": "teacher_b"}],
    )
    torch.manual_seed(0)
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder
