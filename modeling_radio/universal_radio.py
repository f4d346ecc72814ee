"""RADIO for instance segmentation with labels and outputs in the words of transformers' universal segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers.processing_utils import Unpack
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from .annotations_radio import mask_boxes
from .call_arguments_radio import check_call_arguments
from .detection_radio import RadioForInstanceSegmentation
from .requested_outputs_radio import StatesWanted
from .window_choice_radio import WindowSize


@dataclass
class RadioUniversalSegmentationOutput(ModelOutput):
    """Output of `RadioForUniversalSegmentation`, in the order in which programs for Mask2Former read it.

    Attributes:
        loss: With labels the loss, scalar.
        class_queries_logits: `(batch, num_queries, num_labels)`, each class for itself (sigmoid), without a class that
            stands for nothing.
        masks_queries_logits: `(batch, num_queries, height / 4, width / 4)`, logits.
        pred_boxes: `(batch, num_queries, 4)`, as of `RadioForObjectDetection`.
        loss_dict: With labels the parts of the loss.
        last_hidden_state: As of `RadioForObjectDetection`.
        hidden_states: On request, as of `RadioTaskModel`.
        attentions: On request, as of `RadioTaskModel`.
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
    """`RadioForInstanceSegmentation` in the words of `AutoModelForUniversalSegmentation`; see `forward`."""

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
        """Find objects and their outlines; `RadioForObjectDetection.forward` has what is not said here.

        Args:
            pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
            mask_labels: Per image `(num_objects, height, width)` of the padded image, 0 or 1; boxes follow from them.
                `RadioImageProcessor` makes them of `segmentation_maps` and `instance_id_to_semantic_id`.
            class_labels: Per image `(num_objects,)`, in [0, num_labels).

        Returns:
            `RadioUniversalSegmentationOutput`. `RadioImageProcessor.post_process_instance_segmentation` turns it into
            masks of the original images.

        Raises:
            ValueError: On labels, a mask, a window or an image size that cannot be right.
        """
        check_call_arguments(self, kwargs)
        has_labels = mask_labels is not None or class_labels is not None
        labels = _labels(mask_labels, class_labels, pixel_values, pixel_mask) if has_labels else None
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


def _labels(
    mask_labels: Sequence[Tensor] | None,
    class_labels: Sequence[Tensor] | None,
    pixel_values: Tensor,
    pixel_mask: Tensor | None,
) -> list[dict[str, Tensor]]:
    """Return the labels in the words of `RadioForInstanceSegmentation`."""
    batch, height, width = len(pixel_values), *pixel_values.shape[-2:]
    for name, values in (("mask_labels", mask_labels), ("class_labels", class_labels)):
        if values is None or len(values) != batch:
            found = "None" if values is None else f"{len(values)}"
            raise ValueError(f"`{name}` must have one entry for each of the {batch} images, got {found}.")
    assert mask_labels is not None
    assert class_labels is not None
    labels = []
    for index, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
        expected = (len(classes), height, width)
        if masks.shape != expected:
            raise ValueError(f"`mask_labels[{index}]` must have the shape {expected}, got {tuple(masks.shape)}.")
        if not masks.flatten(1).any(dim=1).all():
            raise ValueError(
                f"`mask_labels[{index}]` must have at least one pixel in each mask, got an empty one. Leave it out, "
                f"and its entry of `class_labels[{index}]`."
            )
        rows, cols = (
            (height, width) if pixel_mask is None else (pixel_mask[index].any(dim=axis).sum() for axis in (1, 0))
        )
        shares = mask_boxes(masks) / torch.tensor([cols, rows, cols, rows], device=masks.device)
        labels.append({"class_labels": classes, "boxes": box_convert(shares, "xyxy", "cxcywh"), "masks": masks})
    return labels
