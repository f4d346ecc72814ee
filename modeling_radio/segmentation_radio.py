"""RADIO for semantic segmentation: the papers' linear probe, or DPT's decoder over four blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.dpt.modeling_dpt import DPTSemanticSegmentationHead
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .annotations_radio import IGNORED_CLASS
from .call_arguments_radio import check_call_arguments
from .configuration_radio import RadioConfig
from .heads_radio import (
    RadioDPTNeck,
    RadioTaskModel,
    build_dpt_config,
    count_classes,
    keep_variance,
    weighted_cross_entropy,
)
from .outputs_radio import NetworkPass
from .readout_radio import read_out
from .requested_outputs_radio import StatesWanted
from .views_radio import View, ViewOptions, average_maps, require_pixels
from .window_choice_radio import WindowSize


class RadioLinearSegmentationHead(nn.Module):
    """Batch norm and one linear layer: the backbone's features as a map to logits, one for each patch.

    References:
        The ADE20k linear probe of the RADIO papers, for example C-RADIOv4. https://arxiv.org/abs/2601.17237
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(config.hidden_size)
        self.classifier = nn.Conv2d(config.hidden_size, count_classes(config), 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.norm(features))


class RadioDPTSegmentationHead(nn.Module):
    """DPT's decoder: a pass as `RadioDPTNeck` takes it to logits, 16 rows and columns for each patch."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        dpt_config = build_dpt_config(config)
        self.neck = RadioDPTNeck(config, dpt_config)
        self.head = DPTSemanticSegmentationHead(dpt_config)
        keep_variance(self.head)

    def forward(self, passed: NetworkPass) -> Tensor:
        return self.head(self.neck(passed))


class RadioForSemanticSegmentation(RadioTaskModel):
    """RADIO with a head that gives each pixel a class; see `forward`. `config.segmentation_head` chooses the head.

    Raises:
        ValueError: If the default of `semantic_loss_ignore_index` is one of the classes, which would not be learned.
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        config = self.config
        if config.semantic_loss_ignore_index == IGNORED_CLASS < count_classes(config):
            raise ValueError(
                f"`semantic_loss_ignore_index` must not be its default, {IGNORED_CLASS}, with {count_classes(config)} "
                "classes, of which that is one: set -100, and give it to pixels that do not count."
            )
        heads = {"linear": RadioLinearSegmentationHead, "dpt": RadioDPTSegmentationHead}
        self.decode_head = heads[config.segmentation_head](config)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        window_size: WindowSize = None,
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        pixel_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images; `RadioTaskModel` has the arguments that are not listed here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            labels: The class of each pixel, `(batch, height, width)`, in [0, num_labels) or
                `config.semantic_loss_ignore_index`. They may be of another size than the images.

        Returns:
            `logits` `(batch, num_labels, ...)`, with one row and column for each patch ("linear") or more ("dpt"), and
            with labels the `loss`, scalar: the mean cross-entropy of logits resized to the labels.
            `RadioImageProcessor.post_process_semantic_segmentation` resizes them to the original images.

        Raises:
            ValueError: On labels that cannot be right; otherwise as `RadioModel.forward`.
        """
        check_call_arguments(self, kwargs)
        if labels is not None:
            labels = self._check_labels(labels, len(pixel_values))
        is_dpt = self.config.segmentation_head == "dpt"
        passed = self.radio_model(
            pixel_values,
            window_size=window_size,
            keep=self.config.dpt_blocks if is_dpt else (),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if is_dpt:
            logits = self.decode_head(passed)
        else:
            logits = self.decode_head(read_out(self.radio_model, passed, feature_format="NCHW").features)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device)),
            logits=logits,
            hidden_states=passed.hidden_states,
            attentions=passed.attentions,
        )

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, window_size: WindowSize = None, **options: Any) -> SemanticSegmenterOutput:
        """Segment images by several looks at each, whose probabilities are averaged in each pixel.

        Args:
            pixel_values: As in `forward`, with tiles of any size that the patch divides.
            window_size: As in `forward`.
            options: Of `ViewOptions`: `tile_size`, `tile_overlap`, `scales`, `flip`.

        Returns:
            `logits` `(batch, num_labels, height, width)`, logarithms of probabilities, a row and column for each pixel.

        Raises:
            ValueError: If an option cannot be; otherwise as `forward`.
        """
        size = require_pixels(pixel_values)
        views = ViewOptions(**options).take(self.config, pixel_values)

        def answer(view: View) -> Tensor:
            logits = self(view.pixel_values, window_size=window_size, return_dict=True).logits.float()
            sides = view.pixel_values.shape[-2:]
            return F.interpolate(logits, sides, mode="bilinear", align_corners=False).softmax(dim=1)

        shares = average_maps(((view, answer(view)) for view in views), size)
        return SemanticSegmenterOutput(logits=shares.clamp(min=torch.finfo(shares.dtype).tiny).log())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        ignore_index = self.config.semantic_loss_ignore_index
        return weighted_cross_entropy(logits, labels, self.class_weights(logits), ignore_index)

    def _check_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        """Return labels in the type that the loss needs, after checks."""
        if labels.ndim != 3 or len(labels) != batch_size or not labels.numel():
            raise ValueError(
                f"`labels` must have the shape ({batch_size}, height, width), a map for each image, got "
                f"{tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"`labels` must be integers, the class of each pixel, got {labels.dtype}.")
        labels = labels.long()
        self.check_classes(labels, self.config.semantic_loss_ignore_index)
        return labels
