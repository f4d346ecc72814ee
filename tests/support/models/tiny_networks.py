"""Networks of timm, transformers and of a test, small enough to train in seconds."""

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.wrapped_radio import register_network, wrapped_fields


class TwoMaps(nn.Module):
    """Two maps, at strides 8 and 16, the finer one first."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width), nn.GELU())
        self.coarse = nn.Sequential(nn.Conv2d(width, 2 * width, 2, stride=2), nn.GELU())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        fine = self.fine(pixels)
        return [fine, self.coarse(fine)]


class NoMap(nn.Module):
    """A vector for each image."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))


class OddStride(nn.Module):
    """A map whose cells are 3 px wide, so that one is missing at the end."""

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 3)


class MirroredMap(TwoMaps):
    """A map that moves to the left when the image moves to the right."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return super().forward(pixels.flip(3))


class NoisyMap(TwoMaps):
    """A map that is another one each time, also in evaluation mode."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return super().forward(pixels + torch.randn_like(pixels))


class LostBuffer(TwoMaps):
    """With a buffer that is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(1), persistent=False)


class TinyNetwork(NamedTuple):
    """A network as `student` of a recipe names it.

    Attributes:
        architecture: `student.architecture`.
        arguments: `student.arguments`.
        levels: `student.levels`.
    """

    architecture: str
    arguments: dict[str, Any]
    levels: list[int]

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `RadioConfig`."""
        library, _, name = self.architecture.partition(":")
        if library not in ("timm", "transformers"):
            register_network(self.architecture, TwoMaps)
            return wrapped_fields("class", self.architecture, self.arguments, self.levels)
        return wrapped_fields(library, name, self.arguments, self.levels)

    @property
    def overrides(self) -> list[str]:
        """Overrides of the tiny recipe that put it in place of its ViT."""
        own = [f"student.{key}={json.dumps(value)}" for key, value in self._asdict().items()]
        partitions = "partitions=[{name: low, sizes_px: [64], batch_size: 4}]"
        return [*own, "student.preset=null", "student.config=null", partitions]


CONVNEXT = TinyNetwork("timm:convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, [-1])
RESNET = TinyNetwork("timm:resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8}, [-2, -1])
_EFFICIENTVIT = {"widths": [8, 8, 16, 24, 32], "depths": [1, 1, 1, 1, 1], "head_dim": 8}
_SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}
_EDGENEXT = {"dims": [8, 16, 24, 32], "depths": [1, 2, 2, 2], "heads": [2, 2, 2, 2]}
_ERADIO = {"dim": 8, "in_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4], "cpb_mlp_hidden": 8}
_ERADIO |= {"full_features_head_dim": 12, "window_size": [None, None, [4, 4], 4]}
_DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}

NETWORKS = {
    "ConvNeXt": CONVNEXT,
    "ResNet": RESNET,
    "EfficientViT": TinyNetwork("timm:efficientvit_b0", _EFFICIENTVIT, [-1]),
    "Swin": TinyNetwork("timm:swin_tiny_patch4_window7_224", _SWIN, [-1]),
    "hybrid": TinyNetwork("timm:edgenext_xx_small", _EDGENEXT, [-1]),
    "DINOv2": TinyNetwork("transformers:dinov2", _DINOV2, [-1]),
    "class": TinyNetwork("tiny_networks:TwoMaps", {"width": 12}, [0, 1]),
}

STUDENTS = {**NETWORKS, "E-RADIO": TinyNetwork("e_radio", _ERADIO, [-1])}


def build_wrapped(name: str, **fields: Any) -> RadioModel:
    """Return a model around one of `NETWORKS` with two adaptors and random weights, in evaluation mode."""
    torch.manual_seed(0)
    own = {"num_cls_tokens": 2, **NETWORKS[name].fields}
    adaptors = [
        {"name": "semantic", "summary_dim": 10, "feature_dim": 12, "hidden_size": 16},
        {"name": "dense", "feature_dim": 9, "hidden_size": 16, "token_index": own["num_cls_tokens"] - 1},
    ]
    return RadioModel(RadioConfig(**{**own, "adaptors": adaptors, **fields})).eval()
