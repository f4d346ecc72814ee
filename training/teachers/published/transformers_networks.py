"""Teachers of transformers' model classes by family: CLIP, SigLIP, TIPSv2, SAM to SAM3, DINO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.checks_radio import round_to_step
from modeling_radio.training.recipes.sections import Precision
from modeling_radio.training.teachers.base import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Teacher,
)
from modeling_radio.training.teachers.outputs import TeacherOutput, teacher_error, tokens_to_map
from modeling_radio.training.teachers.published.base import (
    ModelClass,
    PublishedTeacher,
    Weights,
    open_network,
    vision_config,
    vision_facts,
)


def _clip_vision_config(config: Any) -> Any:
    """Return the vision part of a CLIP's config, with the width of the shared space from beside it."""
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


class ClipTeacher(PublishedTeacher):
    """The vision tower of a CLIP, for example `apple/DFN5B-CLIP-ViT-H-14-378`.

    The summary is the projected class token, which is comparable with text. The features are the other tokens after the
    last norm, which transformers applies to the class token only.
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
    other one, of synthetic captions, is in the position of DINOv2's registers and not used.

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


def _flexible_inputs(pixel_values: Tensor, patch_size: int) -> dict[str, Tensor | None]:
    """Return the inputs of a flexible SigLIP2: images as flattened patches, colors last, with their shapes.

    Images of one size need no mask, which transformers would read.
    """
    batch, _, height, width = pixel_values.shape
    rows, cols = height // patch_size, width // patch_size
    patches = F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
    # (batch, patches, channels * p * p) -> colors last
    patches = patches.unflatten(2, (3, patch_size**2)).transpose(2, 3).flatten(2)
    # Shapes are read too, but have no values on the meta device, where `radio plan` counts.
    device = "cpu" if pixel_values.is_meta else pixel_values.device
    shapes = torch.tensor([[rows, cols]], device=device).expand(batch, 2)
    return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}


def _without_neck(model: Any) -> Any:
    model.vision_encoder.neck = nn.Identity()
    return model


class SamTeacher(PublishedTeacher):
    """The trunk of SAM's vision encoder, before its neck, as RADIO matches it (1280 wide for SAM-H); no summary.

    It opens a whole SAM or its vision encoder, for example `facebook/sam-vit-huge`. Its positions belong to one square
    grid, so it always runs at one size.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    model_classes: ClassVar = {
        "sam": ModelClass("SamVisionModel", vision_config, _without_neck),
        "sam_vision_model": ModelClass("SamVisionModel", network_of=_without_neck),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return vision_facts(network.config, None, runs_at_any_size=False, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's map."""
        features = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, features.movedim(-1, 1))  # (batch, rows, cols, dim) -> channels first


class Sam3Teacher(PublishedTeacher):
    """The trunk of SAM3's vision encoder, before its neck; it has no summary.

    It opens a whole SAM3, one of its trackers, SAM3-LiteText (SAM3's vision encoder with a smaller one for texts), the
    vision encoder, or the trunk. Its global attention knows the positions of one square grid only, so it always runs at
    one size.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        image_size: Side of its square input, pixels; None for the checkpoint's own (1008 for SAM3).
        weights: "pretrained", or "random".
        weights_dtype: Type of the stored weights.

    Raises:
        ValueError: If the source does not load, or `image_size` is not a multiple of the patch size.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD

    def __init__(
        self,
        name: str,
        *,
        source: str,
        image_size: int | None = None,
        weights: Weights = "pretrained",
        weights_dtype: Precision = "float32",
    ) -> None:
        self._take(name, open_network(name, source, _sam3_classes(name, image_size), weights, weights_dtype))

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return vision_facts(network.config, None, runs_at_any_size=False, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's patch tokens."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, tokens_to_map(tokens, pixel_values, self.patch_size))


def _sam3_classes(name: str, image_size: int | None) -> dict[str, ModelClass]:
    """Return the class of each form of SAM3, with a trunk for `image_size`."""

    def resized(config: Any, trunk_config: Any) -> Any:
        """Return `config` after the size is written into `trunk_config`, a part of it."""
        trunk_config.image_size = side = image_size or trunk_config.image_size
        step = trunk_config.patch_size
        if side % step:
            nearest = round_to_step(side, step)
            raise teacher_error(name, f"`image_size` must be a multiple of {step}, got {side}. Use {nearest}.")
        return config

    def whole(config: Any) -> Any:
        return resized(config, config.vision_config.backbone_config)

    def trunk(model: Any) -> Any:
        return model.vision_encoder.backbone

    return {
        "sam3_video": ModelClass("Sam3Model", lambda config: whole(config.detector_config), trunk),
        "sam3": ModelClass("Sam3Model", whole, trunk),
        "sam3_lite_text": ModelClass("Sam3LiteTextModel", whole, trunk),
        "sam3_tracker": ModelClass("Sam3TrackerModel", whole, trunk),
        "sam3_tracker_video": ModelClass("Sam3TrackerVideoModel", whole, trunk),
        "sam3_vision_model": ModelClass(
            "Sam3VisionModel", lambda config: resized(config, config.backbone_config), lambda model: model.backbone
        ),
        "sam3_vit_model": ModelClass("Sam3ViTModel", lambda config: resized(config, config)),
    }


def _trunk_of_encoder(model: Any) -> Any:
    return model.vision_encoder.backbone


class Sam2Teacher(PublishedTeacher):
    """A stage of the trunk of SAM2, SAM2.1 or EdgeTAM, before the neck; it has no summary.

    It opens a whole model, for example `facebook/sam2.1-hiera-large`, or SAM2's vision encoder or trunk.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        level: Stage of the trunk: 0, 1, 2 or 3 for stride 4, 8, 16 or 32.
        weights: "pretrained", or "random".
        weights_dtype: Type of the stored weights.

    Raises:
        ValueError: If the source does not load, or `level` is no stage.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    size_multiple = 32
    model_classes: ClassVar = {
        "sam2": ModelClass("Sam2Model", network_of=_trunk_of_encoder),
        "sam2_video": ModelClass("Sam2VideoModel", network_of=_trunk_of_encoder),
        "sam2_vision_model": ModelClass("Sam2VisionModel", network_of=lambda model: model.backbone),
        "sam2_hiera_det_model": ModelClass("Sam2HieraDetModel"),
        "edgetam": ModelClass("EdgeTamModel", network_of=_trunk_of_encoder),
        "edgetam_video": ModelClass("EdgeTamVideoModel", network_of=_trunk_of_encoder),
    }

    STRIDES = (4, 8, 16, 32)
    NATIVE_SIZE_PX = 1024  # SAM2 and EdgeTAM alike: the size of their image processors

    def __init__(
        self,
        name: str,
        *,
        source: str,
        level: int = 2,
        weights: Weights = "pretrained",
        weights_dtype: Precision = "float32",
    ) -> None:
        if level not in range(len(self.STRIDES)):
            raise teacher_error(name, f"`level` must be 0, 1, 2 or 3, got {level}.")
        network = open_network(name, source, self.model_classes, weights, weights_dtype)
        Teacher.__init__(
            self,
            name,
            summary_dim=None,
            feature_dim=_stage_widths(network)[level],
            patch_size=self.STRIDES[level],
            native_size_px=self.NATIVE_SIZE_PX,
            default_mode="fixed",
        )
        self.level, self.network = level, network
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the map of the chosen stage."""
        output = self.network(pixel_values.to(self.network.dtype))
        if self.network.config.model_type == "sam2_hiera_det_model":
            return TeacherOutput(None, output.intermediate_hidden_states[self.level].movedim(-1, 1))
        return TeacherOutput(None, output.last_hidden_state[self.level])  # all stages of a network of timm


def _stage_widths(trunk: Any) -> Sequence[int]:
    if trunk.config.model_type == "sam2_hiera_det_model":
        return trunk.config.embed_dim_per_stage
    return trunk.timm_model.feature_info.channels()


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
