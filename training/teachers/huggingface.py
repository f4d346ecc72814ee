"""Teachers of transformers' own model classes, by Hub id or local folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.teachers.base import (
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Precision,
    Teacher,
    TeacherOutput,
    tokens_to_map,
)
from training.teachers.loading import load_pretrained


WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class SiglipTeacher(Teacher):
    """The vision tower of SigLIP2, at fixed (`siglip`) or flexible (`siglip2`) resolution.

    The summary is the output of its pooling head.

    Args:
        name: Name of the teacher.
        source: Hub id or folder, e.g. `google/siglip2-giant-opt-patch16-384`.
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD

    def __init__(self, name: str, *, source: str, weights_dtype: Precision = "float32"):
        from transformers import Siglip2VisionModel, SiglipVisionModel

        accepted = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
        model_type = _config(source, name, accepted).model_type
        is_flexible = model_type.startswith("siglip2")
        model_class = Siglip2VisionModel if is_flexible else SiglipVisionModel
        network = load_pretrained(model_class, source, name, dtype=_weights_dtype(weights_dtype, name))
        width, patch_size = network.config.hidden_size, network.config.patch_size
        summary_dim = width if network.config.vision_use_head else None
        super().__init__(name, summary_dim=summary_dim, feature_dim=width, patch_size=patch_size)
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
        weights_dtype: Type that the weights are kept in.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name: str, *, source: str, weights_dtype: Precision = "float32"):
        from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

        classes = {
            "dinov3_vit": DINOv3ViTModel,
            "dinov2": Dinov2Model,
            "dinov2_with_registers": Dinov2WithRegistersModel,
        }
        model_type = _config(source, name, tuple(classes)).model_type
        network = load_pretrained(classes[model_type], source, name, dtype=_weights_dtype(weights_dtype, name))
        config = network.config
        super().__init__(
            name, summary_dim=config.hidden_size, feature_dim=config.hidden_size, patch_size=config.patch_size
        )
        self.network = network
        self.num_prefix_tokens = 1 if model_type == "dinov2" else 1 + config.num_register_tokens
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens, both after the last norm."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(
            tokens[:, 0], tokens_to_map(tokens[:, self.num_prefix_tokens :], pixel_values, self.patch_size)
        )


class Sam3Teacher(Teacher):
    """The trunk of SAM3's vision encoder, before its neck; it has no summary.

    Its global attention knows the positions of one square grid only, so it always runs at one size.

    Args:
        name: Name of the teacher.
        source: Hub id or folder of the whole SAM3, its vision encoder, or its trunk.
        image_size: Side of the square that it runs at, pixels; None for the checkpoint's own (1008 for SAM3).
        weights_dtype: Type that the weights are kept in.

    Raises:
        ValueError: If the source does not load, or `image_size` is not a multiple of the patch size.
    """

    image_mean, image_std = HALF_MEAN, HALF_STD
    network: Any

    def __init__(self, name: str, *, source: str, image_size: int | None = None, weights_dtype: Precision = "float32"):
        from transformers import Sam3Model, Sam3VisionModel, Sam3ViTModel

        config = _config(source, name, ("sam3_video", "sam3", "sam3_vision_model", "sam3_vit_model"))
        if config.model_type == "sam3_video":
            config = config.detector_config
        # Each class, and the way from it, and from its config, to the trunk.
        classes: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
            "sam3": (Sam3Model, lambda model: model.vision_encoder.backbone, lambda c: c.vision_config.backbone_config),
            "sam3_vision_model": (Sam3VisionModel, lambda model: model.backbone, lambda c: c.backbone_config),
            "sam3_vit_model": (Sam3ViTModel, lambda model: model, lambda c: c),
        }
        model_class, trunk_of, trunk_config_of = classes[config.model_type]
        trunk_config = trunk_config_of(config)
        trunk_config.image_size = image_size or trunk_config.image_size
        if trunk_config.image_size % trunk_config.patch_size:
            raise ValueError(
                f"teacher {name!r}: image_size {image_size} is not a multiple of {trunk_config.patch_size}"
            )
        dtype = _weights_dtype(weights_dtype, name)
        network = trunk_of(load_pretrained(model_class, source, name, config=config, dtype=dtype))
        super().__init__(
            name,
            summary_dim=None,
            feature_dim=trunk_config.hidden_size,
            patch_size=trunk_config.patch_size,
            only_input_size=trunk_config.image_size,
        )
        self.network = network
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the trunk's patch tokens."""
        tokens = self.network(pixel_values.to(self.network.dtype)).last_hidden_state
        return TeacherOutput(None, tokens_to_map(tokens, pixel_values, self.patch_size))


def _config(source: str, name: str, accepted: tuple[str, ...]) -> Any:
    """Return the checkpoint's config; what is missing, behind a licence gate or another model is one line."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"teacher {name!r}: no model at {source!r}: {reason}") from error
    if config.model_type not in accepted:
        choices = ", ".join(accepted)
        raise ValueError(f"teacher {name!r}: {source!r} is a {config.model_type!r}; it must be one of {choices}")
    return config


def _weights_dtype(weights_dtype: str, name: str) -> torch.dtype:
    if weights_dtype not in WEIGHT_DTYPES:
        choices = " or ".join(WEIGHT_DTYPES)
        raise ValueError(f"teacher {name!r}: weights_dtype must be {choices}, not {weights_dtype!r}")
    return WEIGHT_DTYPES[weights_dtype]


def _flexible_inputs(pixel_values: Tensor, patch_size: int) -> dict[str, Tensor]:
    """Return images as the flattened patches, colours last, that flexible SigLIP2 takes."""
    batch, _, height, width = pixel_values.shape
    rows, cols = height // patch_size, width // patch_size
    patches = F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
    # (batch, patches, channels * p * p) -> colours last
    patches = patches.unflatten(2, (3, patch_size**2)).transpose(2, 3).flatten(2)
    shapes = torch.tensor([[rows, cols]], device=pixel_values.device).expand(batch, 2)
    mask = torch.ones((batch, rows * cols), dtype=torch.long, device=pixel_values.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
