"""A tiny model, and held-out images that their colors tell apart."""

import pytest
import torch
from drawn_assets import assets

from modeling_radio import RadioConfig, RadioModel
from training.demo_kit.assets import DemoAssets
from training.demo_kit.evaluation_sets import ClassificationSet, SegmentationSet
from training.evaluation.data.demo import DemoData


__all__ = ["assets"]

COLORS = torch.tensor([[250, 20, 20], [20, 250, 20]], dtype=torch.uint8)


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


@pytest.fixture
def data() -> DemoData:
    """Six objects per set that their color tells apart, and scenes whose left half is red, right half green."""
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[:, :, 8:] = 1
    scenes = COLORS[masks].movedim(-1, 1).contiguous()
    return DemoData(
        "toy",
        DemoAssets((), (), (), ("red", "green"), (), ""),
        ClassificationSet(_painted(labels), labels, _painted(labels.flip(0)), labels.flip(0), ("red", "green")),
        SegmentationSet(scenes, masks, scenes, masks, ("left", "right")),
        _painted(labels),
    )


def _painted(labels: torch.Tensor) -> torch.Tensor:
    return COLORS[labels][:, :, None, None].expand(-1, -1, 16, 16).contiguous()


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Use one thread in all tests of this folder."""
