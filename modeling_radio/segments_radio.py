"""Segments of an image as transformers describes them: a map of numbers, or masks, and what each of them is."""

from typing import Any

import torch
from torch import Tensor


NO_SEGMENT = -1


def divide_pixels(masks: Tensor, least_share: float) -> Tensor:
    """Return masks that do not overlap: each pixel goes to the first that has it.

    Args:
        masks: `(n, height, width)`, boolean, the most certain first.
        least_share: Masks of which not more than this share is left become empty, and their pixels free again.

    Returns:
        Of the same shape.
    """
    divided = torch.zeros_like(masks)
    taken = masks.new_zeros(masks.shape[-2:])
    for mask, own in zip(masks, divided, strict=True):
        left = mask & ~taken
        if left.sum() > least_share * mask.sum():
            own.copy_(left)
            taken |= left
    return divided


def describe_segments(masks: Tensor, scores: Tensor, labels: Tensor, as_masks: bool) -> dict[str, Any]:
    """Return the segments of one image.

    Args:
        masks: `(n, height, width)`, boolean; empty ones are no segments.
        scores: `(n,)`.
        labels: `(n,)`.
        as_masks: Whether `segmentation` is a mask for each segment `(segments, height, width)`, or one map, where later
            masks lie on earlier ones.
    """
    kept = masks.flatten(1).any(dim=1)
    masks, scores, labels = masks[kept], scores[kept], labels[kept]
    segments = [
        {"id": number, "label_id": label, "was_fused": False, "score": score}
        for number, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True))
    ]
    if as_masks:
        return {"segmentation": masks, "segments_info": segments}
    segmentation = torch.full(masks.shape[-2:], NO_SEGMENT, dtype=torch.int32, device=masks.device)
    for number, mask in enumerate(masks):
        segmentation[mask] = number
    return {"segmentation": segmentation, "segments_info": segments}


def segments_of_classes(class_map: Tensor) -> dict[str, Any]:
    """Return the classes of one image `(height, width)` as segments, numbered by their class and without a score."""
    found = class_map.unique().tolist()
    segments = [{"id": label, "label_id": label, "was_fused": False, "score": None} for label in found]
    return {"segmentation": class_map.to(torch.int32), "segments_info": segments}
