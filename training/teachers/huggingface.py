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

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.teachers.base import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Precision,
    Teacher,
    TeacherOutput,
    tokens_to_map,
)
from training.teachers.loading import load_config, load_pretrained
from training.teachers.published import published_config


WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Weights = Literal["pretrained", "random"]


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


def open_network(
    source: str, name: str, classes: dict[str, ModelClass], weights: Weights, weights_dtype: Precision
) -> Any:
    """Return a network of transformers.

    Args:
        source: Hub id or folder.
        name: The teacher's, for errors.
        classes: How it is opened, by the checkpoint's model type.
        weights: "pretrained", or "random" for the architecture only: of the published teachers without a download, of
            others from the config at `source`.
        weights_dtype: Type that the weights are kept in.

    Raises:
        ValueError: If an option is unknown, or the source is missing, behind a license gate, incomplete or another
            model: one line.
    """
    import transformers

    _check_option(name, "weights", weights, ("pretrained", "random"))
    _check_option(name, "weights_dtype", weights_dtype, tuple(WEIGHT_DTYPES))
    config = published_config(source) if weights == "random" else None
    if config is None:
        config = load_config(source, name, tuple(classes))
    class_name, config_of, network_of = classes[config.model_type]
    model_class, dtype = getattr(transformers, class_name), WEIGHT_DTYPES[weights_dtype]
    if weights == "random":
        return network_of(model_class(config_of(config)).to(dtype))
    return network_of(load_pretrained(model_class, source, name, config=config_of(config), dtype=dtype))


class ClipTeacher(Teacher):
    """The vision tower of a CLIP, for example DFN CLIP.

    The summary is the projected class token, which is comparable with text. The features are the other tokens, through
    the last norm too, which transformers gives to the class token only.

    Args:
        name: Name of the teacher.
        source: Hub id or folder, e.g. `apple/DFN5B-CLIP-ViT-H-14-378`.
        weights: "pretrained", or "random".
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = CLIP_MEAN, CLIP_STD

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ):
        classes = {
            "clip": ModelClass("CLIPVisionModelWithProjection", _clip_vision_config),
            "clip_vision_model": ModelClass("CLIPVisionModelWithProjection"),
        }
        network = open_network(source, name, classes, weights, weights_dtype)
        config = network.config
        super().__init__(
            name,
            summary_dim=config.projection_dim,
            feature_dim=config.hidden_size,
            patch_size=config.patch_size,
            native_size_px=_whole_patches(config.image_size, config.patch_size),
            default_mode="fixed",
        )
        self.network = network
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the projected class token and the patch tokens."""
        tower = self.network.vision_model
        output = tower(pixel_values.to(self.network.dtype), interpolate_pos_encoding=True)
        tokens = tower.post_layernorm(output.last_hidden_state[:, 1:])
        summary = self.network.visual_projection(output.pooler_output)
        return TeacherOutput(summary, tokens_to_map(tokens, pixel_values, self.patch_size))


class SiglipTeacher(Teacher):
    """The vision tower of SigLIP or SigLIP2, at fixed (`siglip`) or flexible (NaFlex, `siglip2`) resolution.

    The summary is the output of its pooling head.

    Args:
        name: Name of the teacher.
        source: Hub id or folder, e.g. `google/siglip2-giant-opt-patch16-384`.
        weights: "pretrained", or "random".
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ):
        classes = {
            "siglip": ModelClass("SiglipVisionModel", _vision_config),
            "siglip_vision_model": ModelClass("SiglipVisionModel"),
            "siglip2": ModelClass("Siglip2VisionModel", _vision_config),
            "siglip2_vision_model": ModelClass("Siglip2VisionModel"),
        }
        network = open_network(source, name, classes, weights, weights_dtype)
        config = network.config
        is_flexible = config.model_type == "siglip2_vision_model"
        side = math.isqrt(config.num_patches) * config.patch_size if is_flexible else config.image_size
        super().__init__(
            name,
            summary_dim=config.hidden_size if network.use_head else None,
            feature_dim=config.hidden_size,
            patch_size=config.patch_size,
            native_size_px=_whole_patches(side, config.patch_size),
            default_mode="native" if is_flexible else "fixed",
        )
        self.network = network
        self.is_flexible = is_flexible
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled head's output and the patch tokens after the last norm."""
        pixel_values = pixel_values.to(self.network.dtype)
        if self.is_flexible:
            output = self.network(**_flexible_inputs(pixel_values, self.patch_size))
        else:
            output = self.network(pixel_values, interpolate_pos_encoding=True)
        return TeacherOutput(
            output.pooler_output, tokens_to_map(output.last_hidden_state, pixel_values, self.patch_size)
        )


class DinoTeacher(Teacher):
    """DINOv3 ViT, or DINOv2 with or without registers; summary = the class token.

    Args:
        name: Name of the teacher.
        source: Hub id or folder, e.g. `facebook/dinov3-vit7b16-pretrain-lvd1689m`.
        weights: "pretrained", or "random".
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ):
        classes = {
            "dinov3_vit": ModelClass("DINOv3ViTModel"),
            "dinov2": ModelClass("Dinov2Model"),
            "dinov2_with_registers": ModelClass("Dinov2WithRegistersModel"),
        }
        network = open_network(source, name, classes, weights, weights_dtype)
        config = network.config
        super().__init__(
            name,
            summary_dim=config.hidden_size,
            feature_dim=config.hidden_size,
            patch_size=config.patch_size,
            native_size_px=_whole_patches(config.image_size, config.patch_size),
        )
        self.network = network
        self.num_prefix_tokens = 1 if config.model_type == "dinov2" else 1 + config.num_register_tokens
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens, both after the last norm."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(
            tokens[:, 0], tokens_to_map(tokens[:, self.num_prefix_tokens :], pixel_values, self.patch_size)
        )


class SamTeacher(Teacher):
    """The trunk of SAM's vision encoder, before its neck, as RADIO matches it (1280 wide for SAM-H); no summary.

    Its positions are those of one square grid, so it always runs at one size.

    Args:
        name: Name of the teacher.
        source: Hub id or folder of the whole SAM or its vision encoder, e.g. `facebook/sam-vit-huge`.
        weights: "pretrained", or "random".
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self, name: str, *, source: str, weights: Weights = "pretrained", weights_dtype: Precision = "float32"
    ):
        classes = {
            "sam": ModelClass("SamVisionModel", _vision_config),
            "sam_vision_model": ModelClass("SamVisionModel"),
        }
        network = open_network(source, name, classes, weights, weights_dtype)
        config = network.config
        super().__init__(
            name,
            summary_dim=None,
            feature_dim=config.hidden_size,
            patch_size=config.patch_size,
            native_size_px=config.image_size,
            runs_at_any_size=False,
            default_mode="fixed",
        )
        network.vision_encoder.neck = nn.Identity()
        self.network = network
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's map."""
        features = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, features.movedim(-1, 1))  # (batch, rows, cols, dim) -> channels first


class Sam3Teacher(Teacher):
    """The trunk of SAM3's vision encoder, before its neck; it has no summary.

    Its global attention knows the positions of one square grid only, so it always runs at one size.

    Args:
        name: Name of the teacher.
        source: Hub id or folder of the whole SAM3, its vision encoder, or its trunk.
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
    ):
        network = open_network(source, name, _sam3_classes(name, image_size), weights, weights_dtype)
        config = network.config
        super().__init__(
            name,
            summary_dim=None,
            feature_dim=config.hidden_size,
            patch_size=config.patch_size,
            native_size_px=config.image_size,
            runs_at_any_size=False,
            default_mode="fixed",
        )
        self.network = network
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's patch tokens."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, tokens_to_map(tokens, pixel_values, self.patch_size))


def _sam3_classes(name: str, image_size: int | None) -> dict[str, ModelClass]:
    """Return how each form of SAM3 is opened, so that its trunk runs at `image_size`."""

    def resized(config: Any, trunk_config: Any) -> Any:
        """Return `config` with the size written into `trunk_config`, a part of it."""
        trunk_config.image_size = image_size or trunk_config.image_size
        if trunk_config.image_size % trunk_config.patch_size:
            raise ValueError(
                f"teacher {name!r}: image_size {image_size} is not a multiple of {trunk_config.patch_size}"
            )
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


def _vision_config(config: Any) -> Any:
    return config.vision_config


def _clip_vision_config(config: Any) -> Any:
    """Return the vision part of a CLIP's config; the width of the shared space stands beside it."""
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def _whole_patches(side: int, patch_size: int) -> int:
    """Return a training size without the border that makes no whole patch: 384 px in patches of 14 are 378 px."""
    return side // patch_size * patch_size


def _check_option(name: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"teacher {name!r}: {option} must be {' or '.join(choices)}, not {value!r}")


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
