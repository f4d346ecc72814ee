from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Hand tiny tensors to one thread: on a busy machine, waiting for others takes a hundred times longer."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
