"""Teachers that know words.

| kind | class | normalization | summary | features | runs unless told otherwise |
| --- | --- | --- | --- | --- | --- |
| clip | CLIP, DFN CLIP | OpenAI's | projected class token | patch tokens after the last norm | fixed |
| siglip, siglip2 | SigLIP, SigLIP2 | 0.5 | pooling head | same | fixed; NaFlex native |
| tipsv2 | TIPSv2 | none: pixels in [0, 1] | first class token | same | native |
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from training.teachers.answers import TeacherOutput, tokens_to_map
from training.teachers.base import CLIP_MEAN, CLIP_STD, HALF_MEAN, HALF_STD
from training.teachers.published.base import ModelClass, PublishedTeacher, vision_config, vision_facts


def _clip_vision_config(config: Any) -> Any:
    """Return the vision part of a CLIP's config; the width of the shared space stands beside it."""
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


class ClipTeacher(PublishedTeacher):
    """The vision tower of a CLIP, for example `apple/DFN5B-CLIP-ViT-H-14-378`.

    The summary is the projected class token, which is comparable with text. The features are the other tokens, through
    the last norm too, which transformers gives to the class token only.
    """

    image_mean, image_std = CLIP_MEAN, CLIP_STD
    model_classes: ClassVar = {
        "clip": ModelClass("CLIPVisionModelWithProjection", _clip_vision_config),
        "clip_vision_model": ModelClass("CLIPVisionModelWithProjection"),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return vision_facts(network.config, network.config.projection_dim, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the projected class token and the patch tokens."""
        tower = self.network.vision_model
        output = tower(pixel_values.to(self.network.dtype), interpolate_pos_encoding=True)
        tokens = tower.post_layernorm(output.last_hidden_state[:, 1:])
        summary = self.network.visual_projection(output.pooler_output)
        return TeacherOutput(summary, tokens_to_map(tokens, pixel_values, self.patch_size))


class SiglipTeacher(PublishedTeacher):
    """The vision tower of SigLIP or SigLIP2, for example `google/siglip2-giant-opt-patch16-384`.

    Its resolution is fixed (`siglip`) or flexible (NaFlex, `siglip2`). The summary is the output of its pooling head.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD
    model_classes: ClassVar = {
        "siglip": ModelClass("SiglipVisionModel", vision_config),
        "siglip_vision_model": ModelClass("SiglipVisionModel"),
        "siglip2": ModelClass("Siglip2VisionModel", vision_config),
        "siglip2_vision_model": ModelClass("Siglip2VisionModel"),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        config = network.config
        summary_dim = config.hidden_size if network.use_head else None
        if _is_flexible(network):
            return vision_facts(config, summary_dim, math.isqrt(config.num_patches) * config.patch_size)
        return vision_facts(config, summary_dim, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled head's output and the patch tokens after the last norm."""
        pixel_values = pixel_values.to(self.network.dtype)
        if _is_flexible(self.network):
            output = self.network(**_flexible_inputs(pixel_values, self.patch_size))
        else:
            output = self.network(pixel_values, interpolate_pos_encoding=True)
        return TeacherOutput(
            output.pooler_output, tokens_to_map(output.last_hidden_state, pixel_values, self.patch_size)
        )


def _is_flexible(network: Any) -> bool:
    return network.config.model_type == "siglip2_vision_model"


class Tipsv2Teacher(PublishedTeacher):
    """The vision tower of TIPSv2, for example `google/tipsv2-b14`.

    The summary is the class token that learned from captions of the web, the one that TIPSv2 compares with texts. The
    other one, of synthetic captions, stands where DINOv2 has registers; no part of the answer is made of it.

    References:
        TIPSv2, CVPR 2026, https://gdm-tipsv2.github.io/
    """

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    model_classes: ClassVar = {
        "tipsv2": ModelClass("Tipsv2VisionModel", vision_config),
        "tipsv2_vision_model": ModelClass("Tipsv2VisionModel"),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return vision_facts(network.config, network.config.hidden_size)

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the first class token and the patch tokens, both after the last norm."""
        output = self.network(pixel_values.to(self.network.dtype))
        patches = output.last_hidden_state[:, 1 + self.network.config.num_register_tokens :]
        return TeacherOutput(output.pooler_output, tokens_to_map(patches, pixel_values, self.patch_size))


def _flexible_inputs(pixel_values: Tensor, patch_size: int) -> dict[str, Tensor]:
    """Return images as the flattened patches, colors last, that flexible SigLIP2 takes."""
    batch, _, height, width = pixel_values.shape
    rows, cols = height // patch_size, width // patch_size
    patches = F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
    # (batch, patches, channels * p * p) -> colors last
    patches = patches.unflatten(2, (3, patch_size**2)).transpose(2, 3).flatten(2)
    shapes = torch.tensor([[rows, cols]], device=pixel_values.device).expand(batch, 2)
    mask = torch.ones((batch, rows * cols), dtype=torch.long, device=pixel_values.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
