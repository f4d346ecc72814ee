import pytest
import torch

from modeling_radio import RadioConfig, RadioModel


@pytest.fixture
def tiny_model() -> RadioModel:
    torch.manual_seed(0)
    adaptor = {"token_index": 0, "summary_dim": 6, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=8,
        max_img_size=64,
        num_cls_tokens=2,
        num_registers=1,
        adaptors=[adaptor | {"name": "teacher_a"}, adaptor | {"name": "teacher_b", "summary_dim": None}],
    )
    return RadioModel(config).eval()
