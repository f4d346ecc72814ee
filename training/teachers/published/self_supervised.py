"""Teachers that learned from images alone.

| kind | class | normalization | summary | features | runs unless told otherwise |
| --- | --- | --- | --- | --- | --- |
| dinov2, dinov3 | DINOv2 (registers or not), DINOv3 ViT | ImageNet's | class token | patch tokens, normed | native |
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from training.teachers.answers import TeacherOutput, tokens_to_map
from training.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from training.teachers.published.base import ModelClass, PublishedTeacher, vision_facts


class DinoTeacher(PublishedTeacher):
    """DINOv3 ViT, or DINOv2 with or without registers, for example `facebook/dinov3-vit7b16-pretrain-lvd1689m`.

    The summary is the class token.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    model_classes: ClassVar = {
        "dinov3_vit": ModelClass("DINOv3ViTModel"),
        "dinov2": ModelClass("Dinov2Model"),
        "dinov2_with_registers": ModelClass("Dinov2WithRegistersModel"),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return vision_facts(network.config, network.config.hidden_size)

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens, both after the last norm."""
        config = self.network.config
        num_prefix_tokens = 1 if config.model_type == "dinov2" else 1 + config.num_register_tokens
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        features = tokens_to_map(tokens[:, num_prefix_tokens:], pixel_values, self.patch_size)
        return TeacherOutput(tokens[:, 0], features)
