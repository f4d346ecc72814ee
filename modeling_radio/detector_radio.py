"""RF-DETR that reads RADIO's feature maps in place of pixels, in float32 whatever the precision of the backbone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import local_torch_dtype
from transformers.models.rf_detr.configuration_rf_detr import RfDetrConfig
from transformers.models.rf_detr.modeling_rf_detr import (
    RfDetrC2FLayer,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrModel,
)
from transformers.utils.generic import is_flash_attention_requested

from .backbone_radio import RadioMapNorm
from .configuration_radio import RadioConfig


MASK_STRIDE = 4
"""Pixels of the image along a side for each pixel of a mask, as in RF-DETR."""


# `RfDetrConfig` wants a backbone; RADIO's projector replaces it.
_REPLACED_BACKBONE = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 14,
    "out_features": ["stage1"],
}


class Float32Part(PreTrainedModel):
    """Base of a part whose weights stay in float32 when the model around it is cast to half precision.

    `_keep_in_fp32_modules_strict` of that model keeps what is read from a file, this what is cast by `to(dtype)`,
    `half()` or `bfloat16()`, and `build_detector` what is built under another default type.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def apply_but_keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            is_narrower = applied.element_size() < tensor.element_size()
            return tensor.to(applied.device) if is_narrower else applied

        return super()._apply(apply_but_keep_precision, recurse)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return the attention that the model around asks for; in place of flash kernels, which lack float32, sdpa."""
        if is_flash_attention_requested(requested_attention_implementation=requested_attention):
            requested_attention = "sdpa"
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


class RadioDetectionProjector(nn.Module):
    """Fuses the outputs of several blocks into the one map that the decoder reads.

    It stands where RF-DETR has its backbone, and normalizes each block's output first, since their scales differ.

    Shapes of `forward`: the maps side by side `(batch, num_maps * hidden, rows, cols)` and which patches are image
    `(batch, rows, cols)`, to one map `(batch, detection_hidden_size, rows, cols)` and the mask as booleans.
    """

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__()
        hidden, eps, num_maps = config.hidden_size, config.layer_norm_eps, len(config.detection_blocks)
        self.input_norms = nn.ModuleList(RadioMapNorm(hidden, eps=eps) for _ in range(num_maps))
        self.projector = RfDetrC2FLayer(detector_config, hidden * num_maps)
        self.output_norm = RadioMapNorm(config.detection_hidden_size, eps=eps)

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        parts = maps.chunk(len(self.input_norms), dim=1)
        normed = [norm(part) for norm, part in zip(self.input_norms, parts, strict=True)]
        return self.output_norm(self.projector(torch.cat(normed, dim=1))), mask.bool()


class RadioDetectorModel(RfDetrModel):
    """RF-DETR without heads that reads RADIO's feature maps in place of pixels."""

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__(detector_config)
        self.backbone = RadioDetectionProjector(config, detector_config)  # pyrefly: ignore[bad-assignment]

    @property
    def device(self) -> torch.device:
        """Where queries start; the first of all weights, which transformers takes, may be offloaded."""
        return self.query_feat.weight.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # RF-DETR reads these weights without calling their modules, at which accelerate would bring offloaded ones.
        tables: list[Any] = [self.reference_point_embed, self.query_feat]
        tables = [table for table in tables if hasattr(table, "_hf_hook")]
        for table in tables:
            table._hf_hook.pre_forward(table)
        output = super().forward(*args, **kwargs)
        for table in tables:
            table._hf_hook.post_forward(table, None)
        return output


class RadioObjectDetector(Float32Part, RfDetrForObjectDetection):
    """RF-DETR that reads RADIO's feature maps in place of pixels."""

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__(detector_config)
        self.loss_type = "RfDetrForObjectDetection"  # otherwise guessed from this class's name
        self.model = RadioDetectorModel(config, detector_config)


class RadioInstanceSegmenter(Float32Part, RfDetrForInstanceSegmentation):
    """RF-DETR with masks that reads RADIO's feature maps in place of pixels."""

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__(detector_config)
        self.loss_type = "RfDetrForInstanceSegmentation"
        self.patch_size = config.patch_size
        self.model = RadioObjectDetector(config, detector_config)

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor, labels: list[dict[str, Tensor]] | None = None, **kwargs: Any
    ) -> Any:
        if labels is None or any(len(label["boxes"]) for label in labels):
            return super().forward(pixel_values, pixel_mask=pixel_mask, labels=labels, **kwargs)
        # transformers' mask loss is an empty tensor where no image has an object: the boxes' loss is all there is.
        output = super().forward(pixel_values, pixel_mask=pixel_mask, **kwargs)
        boxes = self.model(pixel_values, pixel_mask=pixel_mask, labels=labels, **kwargs)
        output.loss, output.loss_dict = boxes.loss + 0 * output.pred_masks.sum(), boxes.loss_dict
        return output

    def segmentation_head(
        self,
        spatial_features: Tensor,
        list_query_features: Tensor | Sequence[Tensor],
        image_size: Sequence[int],
        skip_blocks: bool = False,
    ) -> list[Tensor] | Tensor:
        """Return mask logits at a quarter of the image's size; `image_size` counts patches here."""
        pixels = torch.Size(side * self.patch_size for side in image_size)
        if min(pixels) < MASK_STRIDE:
            raise ValueError(f"`pixel_values` must have sides of at least {MASK_STRIDE} px, got {tuple(pixels)}.")
        return super().segmentation_head(spatial_features, list_query_features, pixels, skip_blocks)


Detector = TypeVar("Detector", RadioObjectDetector, RadioInstanceSegmenter)


def build_detector(detector_class: type[Detector], config: RadioConfig) -> Detector:
    """Return a new detector, in float32 and with the backbone's attention implementation."""
    with local_torch_dtype(torch.float32):
        return detector_class(config, _detector_config(config))


def initialize_detector(detector: RadioObjectDetector | RadioInstanceSegmenter) -> None:
    """Give every weight that no checkpoint holds the starting value of RF-DETR's own code.

    transformers', which has trained weights to open, gives all matrices a deviation of 0.02, whatever their width: a
    decoder of 96 channels then starts nearly deaf and hardly learns in hundreds of steps.

    Source: https://github.com/roboflow/rf-detr, `_reset_parameters` of the transformer and `LWDETR`: Glorot's uniform
    distribution in the decoder, PyTorch's own start elsewhere. Biases stay at 0.
    """
    boxes = detector.model if isinstance(detector, RadioInstanceSegmenter) else detector
    for module in detector.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
    for part in (boxes.model.decoder, boxes.model.enc_output):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
    init.zeros_(boxes.model.reference_point_embed.weight)
    # Sampling points, score biases and box proposals, which transformers skips in remote code: their modules have no
    # parameters of their own.
    for module in detector.modules():
        if not list(module.parameters(recurse=False)):
            detector._init_weights(module)


def _detector_config(config: RadioConfig) -> RfDetrConfig:
    """Return RF-DETR's configuration; what decides the shapes of weights is given in full."""
    size = config.detection_hidden_size
    return RfDetrConfig(
        backbone_config=dict(_REPLACED_BACKBONE),
        id2label=config.id2label,
        d_model=size,
        decoder_layers=config.detection_num_layers,
        decoder_ffn_dim=8 * size,
        decoder_self_attention_heads=size // 32,
        decoder_cross_attention_heads=size // 16,
        decoder_n_points=4,
        num_queries=config.detection_num_queries,
        group_detr=config.detection_num_groups,
        hidden_expansion=0.5,
        c2f_num_blocks=3,
        intermediate_size=4 * size,
        mask_downsample_ratio=MASK_STRIDE,
        dropout=0.0,
        attn_implementation=config._attn_implementation,  # pyrefly: ignore[unexpected-keyword]
    )
