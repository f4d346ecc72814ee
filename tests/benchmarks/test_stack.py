"""Every network goes from an image to features, and a whole counts each part as often as the published one has it."""

import pytest
import torch
from transformers import DINOv3ViTConfig, PreTrainedConfig, Sam3ViTConfig, SiglipVisionConfig

from benchmarks import stack
from modeling_radio import RadioConfig


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
ADAPTORS = [{"name": name, "hidden_size": 32, "feature_dim": 24, "summary_dim": 24} for name in ("a", "b", "c")]


def tiny_config(source: str) -> PreTrainedConfig:
    if "siglip" in source:
        return SiglipVisionConfig(**SMALL, num_hidden_layers=8, image_size=48, patch_size=16)
    if "dinov3" in source:
        return DINOv3ViTConfig(**SMALL, num_hidden_layers=8, num_register_tokens=4, image_size=32)
    if "sam3" in source:
        placements = [1, 3, 5, 7]
        sides = {"image_size": 56, "patch_size": 14, "window_size": 2, "pretrain_image_size": 28}
        return Sam3ViTConfig(**SMALL, **sides, num_hidden_layers=8, global_attn_indexes=placements)
    depth = {"num_hidden_layers": 4, "vitdet_num_global": 2}
    return RadioConfig.from_preset("radio-test", **depth, adaptors=ADAPTORS, preferred_resolution=[48, 48])


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "published_config", tiny_config)
    monkeypatch.setattr(stack, "IMAGE_PX", 80)
    monkeypatch.setattr(stack, "DTYPE", torch.float32)


def test_every_network_goes_from_an_image_to_features() -> None:
    (student,) = stack.build_students(2, "cpu")
    teachers = [stack.build_teacher(source, 2, "cpu") for source in stack.TEACHERS]
    image = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)
    seen = [each.calls["preprocessing"]([image, image]) for each in (student, *teachers)]
    assert [tuple(pixels.shape) for pixels in seen] == [(2, 3, side, side) for side in (48, 48, 32, 56)]
    with torch.no_grad():
        first, *answers = [
            each.calls["network"](pixels) for each, pixels in zip((student, *teachers), seen, strict=True)
        ]
    assert tuple(first.adaptors) == ("a", "b", "c")
    assert [answer.last_hidden_state.shape[1] for answer in answers] == [9, 1 + 4 + 4, 16]
    assert teachers[2].model.config.global_attn_indexes == [1, 3]
