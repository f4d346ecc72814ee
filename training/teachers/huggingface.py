"""Teachers of transformers' own model classes, by Hub id or local folder.

| kind | class | normalization | summary | features | runs unless told otherwise |
| --- | --- | --- | --- | --- | --- |
| clip | CLIP, DFN CLIP | OpenAI's | projected class token | patch tokens after the last norm | fixed |
| siglip, siglip2 | SigLIP, SigLIP2 | 0.5 | pooling head | patch tokens after the last norm | fixed; NaFlex native |
| dinov2, dinov3 | DINOv2 (registers or not), DINOv3 ViT | ImageNet's | class token | same | native |
| sam | SAM, any size | ImageNet's | none | the trunk's, before the neck | fixed; mosaic is better |
| sam3 | SAM3 | 0.5 | none | the trunk's, before the neck | fixed; mosaic is better |

Patch and native size are the checkpoint's. All take `weights` (pretrained, or random ones of the same architecture, to
plan or measure a run) and `weights_dtype` (the type that the weights are kept in).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.messages_radio import check_choice
from modeling_radio.resolution_radio import round_to_step
from training.recipe_sections.networks import Precision
from training.teachers.answers import TeacherOutput, teacher_error, tokens_to_map
from training.teachers.base import CLIP_MEAN, CLIP_STD, HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, Teacher
from training.teachers.depths import longest_list
from training.teachers.loading import WEIGHT_DTYPES, Weights, check_model_type, load_config, load_pretrained
from training.teachers.published import published_config


class ModelClass(NamedTuple):
    """How a checkpoint of one model type is opened.

    Attributes:
        name: Class of transformers.
        config_of: From the checkpoint's config to that of the class.
        network_of: From a model of the class to the network that the teacher runs.
    """

    name: str
    config_of: Callable[[Any], Any] = lambda config: config
    network_of: Callable[[Any], Any] = lambda model: model


class PublishedTeacher(Teacher):
    """A vision network of transformers, opened by Hub id or from a folder.

    A subclass says which checkpoints it opens (`model_classes`), what their configuration says (`facts_of`), and how
    the network's output becomes an answer (`encode`). Options of its own go into a constructor like this one.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        weights: "pretrained", or "random" for the architecture only: of the published teachers without a download, of
            others from the config at `source`.
        weights_dtype: Type that the weights are kept in.

    Attributes:
        model_classes: How checkpoints are opened, by their model type.
        network: What `encode` runs.

    Raises:
        ValueError: If an option is unknown, or the source is missing, behind a license gate, incomplete or another
            model: one line.
    """

    model_classes: ClassVar[Mapping[str, ModelClass]] = {}

    network: Any

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ) -> None:
        self._take(name, _open_network(name, source, self.model_classes, weights, weights_dtype))

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        """Return those arguments of `Teacher` that the network decides: widths, sizes, how it runs by default."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks."""
        return longest_list(self.network)

    def _take(self, name: str, network: Any) -> None:
        super().__init__(name, **self.facts_of(network))
        self.network = network
        self.freeze()


def _open_network(
    name: str, source: str, classes: Mapping[str, ModelClass], weights: Weights, weights_dtype: Precision
) -> Any:
    """Return a network of transformers, given how it is opened by the checkpoint's model type."""
    import transformers

    error = functools.partial(teacher_error, name)
    check_choice("weights", weights, ("pretrained", "random"), error=error)
    check_choice("weights_dtype", weights_dtype, WEIGHT_DTYPES, error=error)
    config = published_config(source) if weights == "random" else None
    if config is None:
        config = load_config(source, name)
    check_model_type(name, source, config, tuple(classes))
    class_name, config_of, network_of = classes[config.model_type]
    model_class, dtype = getattr(transformers, class_name), WEIGHT_DTYPES[weights_dtype]
    if weights == "random":
        return network_of(model_class(config_of(config)).to(dtype))
    return network_of(load_pretrained(model_class, source, name, config=config_of(config), dtype=dtype))


def _facts(config: Any, summary_dim: int | None, side_px: int | None = None, **others: Any) -> dict[str, Any]:
    """Return the arguments of `Teacher` that every vision configuration has, and others."""
    side_px = config.image_size if side_px is None else side_px
    return {
        "summary_dim": summary_dim,
        "feature_dim": config.hidden_size,
        "patch_size": config.patch_size,
        # Without the border that makes no whole patch: 384 px in patches of 14 are 378 px.
        "native_size_px": side_px // config.patch_size * config.patch_size,
        **others,
    }


def _vision_config(config: Any) -> Any:
    return config.vision_config


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
        return _facts(network.config, network.config.projection_dim, default_mode="fixed")

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
        "siglip": ModelClass("SiglipVisionModel", _vision_config),
        "siglip_vision_model": ModelClass("SiglipVisionModel"),
        "siglip2": ModelClass("Siglip2VisionModel", _vision_config),
        "siglip2_vision_model": ModelClass("Siglip2VisionModel"),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        config = network.config
        summary_dim = config.hidden_size if network.use_head else None
        if _is_flexible(network):
            return _facts(config, summary_dim, math.isqrt(config.num_patches) * config.patch_size)
        return _facts(config, summary_dim, default_mode="fixed")

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
        return _facts(network.config, network.config.hidden_size)

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens, both after the last norm."""
        config = self.network.config
        num_prefix_tokens = 1 if config.model_type == "dinov2" else 1 + config.num_register_tokens
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        features = tokens_to_map(tokens[:, num_prefix_tokens:], pixel_values, self.patch_size)
        return TeacherOutput(tokens[:, 0], features)


def _without_neck(model: Any) -> Any:
    model.vision_encoder.neck = nn.Identity()
    return model


class SamTeacher(PublishedTeacher):
    """The trunk of SAM's vision encoder, before its neck, as RADIO matches it (1280 wide for SAM-H); no summary.

    Opened from the whole SAM or its vision encoder, for example `facebook/sam-vit-huge`. Its positions are those of one
    square grid, so it always runs at one size.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    model_classes: ClassVar = {
        "sam": ModelClass("SamVisionModel", _vision_config, _without_neck),
        "sam_vision_model": ModelClass("SamVisionModel", network_of=_without_neck),
    }

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return _facts(network.config, None, runs_at_any_size=False, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's map."""
        features = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, features.movedim(-1, 1))  # (batch, rows, cols, dim) -> channels first


class Sam3Teacher(PublishedTeacher):
    """The trunk of SAM3's vision encoder, before its neck; it has no summary.

    Opened from the whole SAM3, its vision encoder, or its trunk. Its global attention knows the positions of one square
    grid only, so it always runs at one size.

    Args:
        name: Name of the teacher.
        source: Hub id or folder.
        image_size: Side of the square that it runs at, pixels; None for the checkpoint's own (1008 for SAM3).
        weights: "pretrained", or "random".
        weights_dtype: Type that the weights are kept in.

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
        self._take(name, _open_network(name, source, _sam3_classes(name, image_size), weights, weights_dtype))

    @staticmethod
    def facts_of(network: Any) -> dict[str, Any]:
        return _facts(network.config, None, runs_at_any_size=False, default_mode="fixed")

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's patch tokens."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, tokens_to_map(tokens, pixel_values, self.patch_size))


def _sam3_classes(name: str, image_size: int | None) -> dict[str, ModelClass]:
    """Return how each form of SAM3 is opened, so that its trunk runs at `image_size`."""

    def resized(config: Any, trunk_config: Any) -> Any:
        """Return `config` with the size written into `trunk_config`, a part of it."""
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
        "sam3_vision_model": ModelClass(
            "Sam3VisionModel", lambda config: resized(config, config.backbone_config), lambda model: model.backbone
        ),
        "sam3_vit_model": ModelClass("Sam3ViTModel", lambda config: resized(config, config)),
    }


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
