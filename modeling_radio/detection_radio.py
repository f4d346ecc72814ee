"""Object detection and instance segmentation: RF-DETR's decoder over RADIO's features, in ViTDet mode.

Reasons to choose RF-DETR (https://arxiv.org/abs/2511.09554) among the set-prediction decoders in transformers:
- it is made for features of a plain, windowed ViT, and needs neither a convolutional encoder nor several scales, unlike
  RT-DETR v2 and D-FINE;
- its paper reports the highest accuracy on COCO;
- its layer norms are stable in small batches, unlike LW-DETR's batch norm;
- masks need only one more small head;
- its code in transformers is Apache-2.0.

Decoder, matching and losses are those of transformers, in float32 whatever the precision of the backbone.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import box_convert
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import local_torch_dtype
from transformers.models.rf_detr.configuration_rf_detr import RfDetrConfig
from transformers.models.rf_detr.modeling_rf_detr import (
    RfDetrC2FLayer,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrInstanceSegmentationOutput,
    RfDetrModel,
    RfDetrObjectDetectionOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple, is_flash_attention_requested

from .backbone_radio import RadioMapNorm
from .checks_radio import Resolution
from .configuration_radio import RadioConfig
from .heads_radio import ObjectsOfViews, RadioTaskModel, count_classes, fit_whole, require_pixels, with_patches
from .inputs_radio import StatesWanted, WindowSize, check_call_arguments
from .modeling_radio import WHOLE_PARTS
from .outputs_radio import to_map
from .post_processing_radio import labeled_pixel_mask, mask_boxes
from .views_radio import ViewOptions


BOX_TOLERANCE = 1e-3  # our choice: rounding may move a box this far out of [0, 1]


def check_num_queries(config: RadioConfig, grid: Resolution) -> None:
    """Raise a `ValueError` for images with fewer patches than queries: each query starts from a patch of its own."""
    num_queries = config.detection_num_queries
    if grid.height * grid.width < num_queries:
        side = int(num_queries**0.5 + 0.999) * config.patch_size
        raise ValueError(
            f"`detection_num_queries` must be at most {grid.height * grid.width} for images of {grid.height} x "
            f"{grid.width} patches, got {num_queries}. Use larger images (for example {side} x {side} pixels) or fewer "
            "queries."
        )


def are_boxes(boxes: Tensor) -> Tensor:
    """Return which rows are boxes inside the image, `(num_boxes,)`."""
    low, high = -BOX_TOLERANCE, 1 + BOX_TOLERANCE
    corners = box_convert(boxes, "cxcywh", "xyxy")
    return ((corners >= low) & (corners <= high)).all(dim=1) & (boxes[:, 2:] > 0).all(dim=1)


MASK_STRIDE = 4
"""Pixels of the image for each pixel of a mask along a side, as in RF-DETR."""


class Float32Part(PreTrainedModel):
    """Base of a part that stays in float32 when the model around it is cast to half precision.

    This class handles `to(dtype)`, `half()` and `bfloat16()`. `_keep_in_fp32_modules_strict` of the model handles
    weights from files, and `RadioDetectionModel` builds its detector in float32 whatever the default type.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def apply_but_keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            is_narrower = applied.element_size() < tensor.element_size()
            return tensor.to(applied.device) if is_narrower else applied

        return super()._apply(apply_but_keep_precision, recurse)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return the requested attention, but sdpa instead of flash kernels, which do not support float32."""
        if is_flash_attention_requested(requested_attention_implementation=requested_attention):
            requested_attention = "sdpa"
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


class RadioDetectionProjector(nn.Module):
    """Fuses the outputs of several blocks into the map that the decoder reads.

    It replaces RF-DETR's backbone, and first normalizes each block's output, since their scales differ.

    `forward` takes the concatenated maps `(batch, num_maps * hidden, rows, cols)` and a mask of the patches without
    padding `(batch, rows, cols)`. It returns one map `(batch, detection_hidden_size, rows, cols)` and the mask as
    booleans.
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
    """RF-DETR without heads that reads RADIO's feature maps instead of pixels."""

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__(detector_config)
        self.backbone = RadioDetectionProjector(config, detector_config)  # pyrefly: ignore[bad-assignment]

    @property
    def device(self) -> torch.device:
        """Device of the queries; transformers takes that of the first weight, which may be offloaded."""
        return self.query_feat.weight.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # RF-DETR reads these weights without a call of their modules, and accelerate loads offloaded weights at a call.
        tables: list[Any] = [self.reference_point_embed, self.query_feat]
        tables = [table for table in tables if hasattr(table, "_hf_hook")]
        for table in tables:
            table._hf_hook.pre_forward(table)
        output = super().forward(*args, **kwargs)
        for table in tables:
            table._hf_hook.post_forward(table, None)
        return output


class RadioObjectDetector(Float32Part, RfDetrForObjectDetection):
    """RF-DETR that reads RADIO's feature maps instead of pixels."""

    def __init__(self, config: RadioConfig, detector_config: RfDetrConfig) -> None:
        super().__init__(detector_config)
        self.loss_type = "RfDetrForObjectDetection"  # transformers otherwise takes it from this class's name
        self.model = RadioDetectorModel(config, detector_config)


class RadioInstanceSegmenter(Float32Part, RfDetrForInstanceSegmentation):
    """RF-DETR with masks that reads RADIO's feature maps instead of pixels."""

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
        # Without any object transformers' mask loss is an empty tensor: only the loss of the boxes is left.
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
        """Return mask logits at a quarter of the image's size; `image_size` is in patches here."""
        pixels = torch.Size(side * self.patch_size for side in image_size)
        if min(pixels) < MASK_STRIDE:
            raise ValueError(f"`pixel_values` must have sides of at least {MASK_STRIDE} px, got {tuple(pixels)}.")
        return super().segmentation_head(spatial_features, list_query_features, pixels, skip_blocks)


def initialize_detector(detector: RadioObjectDetector | RadioInstanceSegmenter) -> None:
    """Initialize every weight that no checkpoint holds as RF-DETR's own code does.

    transformers initializes all matrices with a standard deviation of 0.02, whatever their width. The signals in a
    decoder of 96 channels are then so small that it hardly learns in hundreds of steps.

    Source: https://github.com/roboflow/rf-detr, `_reset_parameters` of the transformer and `LWDETR`: Glorot's uniform
    distribution in the decoder, PyTorch's own initialization elsewhere. Biases stay at 0.
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
    # Sampling points, score biases and box proposals: in remote code transformers skips these modules, which have no
    # parameters of their own.
    for module in detector.modules():
        if not list(module.parameters(recurse=False)):
            detector._init_weights(module)


def _detector_config(config: RadioConfig) -> RfDetrConfig:
    """Return RF-DETR's configuration; it sets all fields that decide the shapes of weights."""
    size = config.detection_hidden_size
    replaced_backbone = {  # required; `RadioDetectionProjector` takes its place
        "model_type": "rf_detr_dinov2",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 14,
        "out_features": ["stage1"],
    }
    return RfDetrConfig(
        backbone_config=replaced_backbone,
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


class RadioDetectionModel(RadioTaskModel):
    """Base of the detection models: RADIO without adaptors, and a detector that reads its blocks."""

    # In bfloat16 boxes are off by pixels, and the loss's log(1 - p) is infinite for confident queries.
    _keep_in_fp32_modules_strict = ["detector"]
    _keep_in_fp32_modules = ["detector"]  # for quantizers
    detector_class: type[RadioObjectDetector] | type[RadioInstanceSegmenter]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        with local_torch_dtype(torch.float32):
            self.detector = self.detector_class(self.config, _detector_config(self.config))
        self.post_init()

    def initialize_weights(self) -> None:
        """Initialize every weight that no checkpoint holds."""
        super().initialize_weights()
        with torch.no_grad():
            for module in self.detector.modules():
                if isinstance(module, RadioMapNorm):
                    self._init_weights(module)  # RF-DETR recognizes layer norms by the name of their class
            initialize_detector(self.detector)

    def set_attn_implementation(self, *arguments: Any, **options: Any) -> None:
        """Set the attention of backbone and detector; transformers 5.17 skips the detector after the first call."""
        super().set_attn_implementation(*arguments, **options)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_attn_was_changed", None)

    def _set_gradient_checkpointing(  # pyrefly: ignore[bad-override]
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)
        # RF-DETR passes tensors to its layers by keyword; reentrant checkpointing computes their gradients twice.
        for layer in self.detector.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                replay: Any = functools.partial(checkpoint, use_reentrant=False)
                layer._gradient_checkpointing_func = replay

    def detect(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        labels: Sequence[Mapping[str, Tensor]] | None,
        window_size: WindowSize,
        output_hidden_states: StatesWanted,
        output_attentions: bool | None,
    ) -> Any:
        """Run backbone and detector; arguments and errors as in `RadioForObjectDetection.forward`."""
        maps, states, weights = self._feature_maps(pixel_values, window_size, output_hidden_states, output_attentions)
        grid = Resolution(*maps.shape[-2:])
        check_num_queries(self.config, grid)
        if pixel_mask is None and labels is not None:
            pixel_mask = labeled_pixel_mask(labels, pixel_values)
        mask = self._mask_of_patches(pixel_values, pixel_mask, grid)
        with torch.autocast(maps.device.type, enabled=False):
            output = self._run_detector(maps.to(self.detector.dtype), mask, labels)
        fields: Any = {
            "loss": output.loss,
            "loss_dict": output.loss_dict,
            "logits": output.logits,
            "pred_boxes": output.pred_boxes,
            "last_hidden_state": output.last_hidden_state,
            "hidden_states": states,
            "attentions": weights,
        }
        if isinstance(output, RfDetrInstanceSegmentationOutput):
            return RfDetrInstanceSegmentationOutput(pred_masks=output.pred_masks, **fields)
        return RfDetrObjectDetectionOutput(**fields)

    def _feature_maps(
        self,
        pixel_values: Tensor,
        window_size: WindowSize,
        output_hidden_states: StatesWanted,
        output_attentions: bool | None,
    ) -> tuple[Tensor, Any, Any]:
        """Return the concatenated maps of `config.detection_blocks`, `(batch, num_maps * hidden, rows, cols)`.

        The last block's map precedes the final norm. The hidden states and attention weights follow if the caller wants
        them. The rest of the pass is freed here, before the detector needs memory.
        """
        network, blocks = self.radio_model, self.config.detection_blocks
        own_window = self.config.detection_window_size if self.config.has_windowed_blocks else "global"
        result = network(
            pixel_values,
            window_size=own_window if window_size is None else window_size,
            keep=blocks,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        device = result.tokens.device  # blocks may be on several devices
        outputs = result.outputs_of(blocks, self.config.num_hidden_layers - 1)
        features = torch.cat([network.patch_features(output).to(device) for output in outputs], dim=2)
        return to_map(features, result.grid), result.hidden_states, result.attentions

    def _run_detector(self, maps: Tensor, mask: Tensor, labels: Sequence[Mapping[str, Tensor]] | None) -> Any:
        # The loss reads the number of query groups here, also in evaluation, which has one; the decoder in training.
        self.detector.config.group_detr = self.config.detection_num_groups if self.detector.training else 1
        if labels is None:
            return self.detector(maps, pixel_mask=mask)
        if not isinstance(labels, Sequence) or len(labels) != len(maps):
            found = f"{len(labels)} in a list" if isinstance(labels, Sequence) else f"a {type(labels).__name__}"
            raise ValueError(f"`labels` must be a list with one entry for each of the {len(maps)} images, got {found}.")
        for index, label in enumerate(labels):
            self._check_shapes(label, index, maps)
        self._check_values(labels)
        targets = [self._target(label, maps) for label in labels]
        return self.detector(maps, pixel_mask=mask, labels=targets)

    def _mask_of_patches(self, pixel_values: Tensor, pixel_mask: Tensor | None, grid: Resolution) -> Tensor:
        """Return a mask of the patches that are not padding, `(batch, rows, cols)`."""
        if pixel_mask is None:
            return torch.ones((pixel_values.shape[0], *grid), dtype=torch.long, device=pixel_values.device)
        expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
        if pixel_mask.shape != expected:
            raise ValueError(
                f"`pixel_mask` must have the shape {tuple(expected)} of `pixel_values`, got {tuple(pixel_mask.shape)}."
            )
        return pixel_mask[:, :: self.patch_size, :: self.patch_size]

    def _check_shapes(self, label: Mapping[str, Tensor], index: int, maps: Tensor) -> None:
        """Check the shapes of one image's labels, but not their values."""
        classes, boxes = label["class_labels"], label["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
            raise ValueError(
                f"`labels[{index}]` must have `boxes` (num_boxes, 4) and `class_labels` (num_boxes,), got "
                f"{tuple(boxes.shape)} and {tuple(classes.shape)}. An image without objects has torch.zeros(0, 4)."
            )
        if len(boxes) > self.config.detection_num_queries:
            raise ValueError(
                f"`boxes` of `labels[{index}]` must be at most {self.config.detection_num_queries}, the number of "
                f"objects that the model can find in an image (`detection_num_queries`), got {len(boxes)}."
            )

    def _check_values(self, labels: Sequence[Mapping[str, Tensor]]) -> None:
        """Check all classes and boxes at once, since each check waits for the GPU. Compiled models skip it."""
        if torch.compiler.is_compiling():
            return
        classes, boxes = (torch.cat([label[name] for label in labels]) for name in ("class_labels", "boxes"))
        are_classes = (classes >= 0) & (classes < count_classes(self.config))
        if (are_classes & are_boxes(boxes)).all():
            return
        for index, label in enumerate(labels):
            self.check_classes(label["class_labels"], name=f"`class_labels` of `labels[{index}]`")
            wrong = label["boxes"][~are_boxes(label["boxes"])]
            if len(wrong):
                raise ValueError(
                    f"`boxes` of `labels[{index}]` must be (center x, center y, width, height) as shares of the image, "
                    f"inside it and not empty, got {wrong[0].tolist()}. Divide pixels by the image's width and height, "
                    "and clip or drop boxes that a crop has cut (torchvision's ClampBoundingBoxes and "
                    "SanitizeBoundingBoxes)."
                )

    def _target(self, label: Mapping[str, Tensor], maps: Tensor) -> dict[str, Tensor]:
        """Return one image's labels in the types that the loss needs."""
        return {"class_labels": label["class_labels"].to(maps.device, torch.long), "boxes": label["boxes"].to(maps)}


class RadioForObjectDetection(RadioDetectionModel):
    """RADIO with RF-DETR's decoder: a set of boxes with class scores per image; see `forward`.

    By default it reads the blocks with global attention (`config.detection_indices`) of a backbone that runs in
    windows of `config.detection_window_size` tokens. Start with a learning rate of 1e-4 for the detector and gradients
    clipped to 0.1, as in RF-DETR. Our choice for the backbone is a tenth of that or less and a short warm-up. A small
    detector on few images takes 1e-3.
    """

    _no_split_modules = [*WHOLE_PARTS, "RadioObjectDetector"]
    detector_class = RadioObjectDetector

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RfDetrObjectDetectionOutput:
        """Find objects; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch, with
                at least `config.detection_num_queries` patches.
            pixel_mask: 1 on the image and 0 on padding at the right and bottom, `(batch, height, width)`, as
                `RadioImageProcessor` returns it with `do_pad=True`.
            labels: Per image `class_labels` `(num_boxes,)` in [0, num_labels) and `boxes` `(num_boxes, 4)`: center x,
                center y, width and height as shares of the image without padding. Without a `pixel_mask` the model
                reads the padding from `size`, height and width without padding, as `RadioImageProcessor` returns it.
            window_size: As in `RadioModel.forward`; `None` takes `config.detection_window_size`.

        Returns:
            `logits` `(batch, num_queries, num_labels)`, with a sigmoid for each class, and `pred_boxes`
            `(batch, num_queries, 4)` in the format of the labels' boxes; with labels also `loss` and `loss_dict`.
            `RadioImageProcessor.post_process_object_detection` turns them into boxes in pixels.

        Raises:
            ValueError: On invalid labels, or an invalid mask, window or image size.
            ImportError: If labels are given and scipy, which matches boxes, is not installed.
        """
        check_call_arguments(self, kwargs)
        return self.detect(pixel_values, pixel_mask, labels, window_size, output_hidden_states, output_attentions)

    @torch.no_grad()
    def predict(
        self, pixel_values: Tensor, window_size: WindowSize = None, nms_threshold: float = 0.5, **options: Any
    ) -> RfDetrObjectDetectionOutput:
        """Find objects in several views of each image, and keep one box for each object.

        With tiles it also views the whole image, at the number of pixels of a tile, for objects larger than a tile.
        Images that are too small for a patch for each query are enlarged.

        Args:
            pixel_values: As in `forward`; with tiles of any size that is a multiple of the patch.
            window_size: As in `forward`.
            nms_threshold: Boxes of one class with a larger intersection over union are one object.
            options: `tile_size`, `tile_overlap`, `scales` and `flip` of `ViewOptions`.

        Returns:
            As `forward`, with the queries of all views; logits of dropped objects are -inf.

        Raises:
            ValueError: If an option is invalid; otherwise as `forward`.
        """
        require_pixels(pixel_values)
        chosen, found = ViewOptions(**options), ObjectsOfViews(nms_threshold)
        if chosen.tile_size is not None:
            pixel_values = with_patches(self.config, pixel_values, chosen.tile_size)
        views = list(chosen.take(self.config, pixel_values))
        if chosen.tile_size is not None and len(views) > 1:
            whole = fit_whole(self.config, pixel_values, chosen.tile_size)
            views.extend(ViewOptions(flip=chosen.flip).take(self.config, whole))
        for view in views:
            output = self(view.pixel_values, window_size=window_size, return_dict=True)
            found.add(view, output.logits, output.pred_boxes)
        logits, boxes = found.merge()
        return RfDetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)


class RadioForInstanceSegmentation(RadioDetectionModel):
    """RADIO with RF-DETR's decoder and mask head: `RadioForObjectDetection` with a mask for each box."""

    _no_split_modules = [*WHOLE_PARTS, "RadioInstanceSegmenter"]
    detector_class = RadioInstanceSegmenter

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RfDetrInstanceSegmentationOutput:
        """Find objects and their masks; this adds to the documentation of `RadioForObjectDetection.forward`.

        Args:
            labels: Also `masks` `(num_boxes, height, width)` of the padded image, 0 or 1.

        Returns:
            Also `pred_masks` `(batch, num_queries, height / 4, width / 4)`, logits.
            `RadioImageProcessor.post_process_instances` turns them into masks of the original images.

        Raises:
            ValueError: Also on masks of another size or number.
        """
        check_call_arguments(self, kwargs)
        return self.detect(pixel_values, pixel_mask, labels, window_size, output_hidden_states, output_attentions)

    def _check_shapes(self, label: Mapping[str, Tensor], index: int, maps: Tensor) -> None:
        super()._check_shapes(label, index, maps)
        expected = (len(label["boxes"]), *(side * self.patch_size for side in maps.shape[-2:]))
        if label["masks"].shape != expected:
            found = tuple(label["masks"].shape)
            raise ValueError(f"`masks` of `labels[{index}]` must have the shape {expected}, got {found}.")

    def _target(self, label: Mapping[str, Tensor], maps: Tensor) -> dict[str, Tensor]:
        return {**super()._target(label, maps), "masks": label["masks"].to(maps)}


@dataclass
class RadioUniversalSegmentationOutput(ModelOutput):
    """Output of `RadioForInstanceSegmentation` with Mask2Former's names and order of fields.

    `class_queries_logits` are the `logits` (sigmoid, without a class for "no object"), `masks_queries_logits` the
    `pred_masks`.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RadioForUniversalSegmentation(RadioForInstanceSegmentation):
    """`RadioForInstanceSegmentation` with the names of `AutoModelForUniversalSegmentation`; see `forward`."""

    @can_return_tuple
    def forward(  # noqa: D417  # pyrefly: ignore[bad-override]
        self,
        pixel_values: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RadioUniversalSegmentationOutput:
        """Find objects and their masks; this adds to the documentation of `RadioForObjectDetection.forward`.

        Args:
            mask_labels: Per image `(num_objects, height, width)` of the padded image, 0 or 1, none of them empty; the
                boxes are computed from them. `RadioImageProcessor` makes them from `segmentation_maps`.
            class_labels: Per image `(num_objects,)`, in [0, num_labels).
        """
        check_call_arguments(self, kwargs)
        labels = None
        if mask_labels is not None or class_labels is not None:
            if mask_labels is None or class_labels is None:
                raise ValueError("`mask_labels` and `class_labels` must be given together, got one of them alone.")
            inside = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
            labels = [_label_of_masks(*each) for each in zip(mask_labels, class_labels, inside, strict=True)]
        output = self.detect(pixel_values, pixel_mask, labels, window_size, output_hidden_states, output_attentions)
        return RadioUniversalSegmentationOutput(
            loss=output.loss,
            class_queries_logits=output.logits,
            masks_queries_logits=output.pred_masks,
            pred_boxes=output.pred_boxes,
            loss_dict=output.loss_dict,
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def _label_of_masks(masks: Tensor, classes: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
    """Return the label of one image as `RadioForInstanceSegmentation` takes it."""
    if not masks.flatten(1).any(dim=1).all():
        raise ValueError("`mask_labels` must have at least one pixel in each mask: leave empty ones out.")
    rows, cols = (pixel_mask.any(dim=axis).sum() for axis in (1, 0))
    shares = mask_boxes(masks) / torch.stack([cols, rows, cols, rows]).to(masks.device)
    return {"class_labels": classes, "boxes": box_convert(shares, "xyxy", "cxcywh"), "masks": masks}
