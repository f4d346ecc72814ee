"""Random views of labeled images; boxes, masks and depth maps follow every change of geometry (torchvision v2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from training.finetuning.settings import BOX_TASKS, FinetuneSettings


Sample = dict[str, Any]
"""`image`, a `tv_tensors.Image` of uint8 RGB, and what belongs to it: `label`, a number or a list; `mask` or `depth`, a
`tv_tensors.Mask` `(height, width)`; or `boxes`, `tv_tensors.BoundingBoxes` with corners in pixels, `labels`, and where
objects have outlines `masks`, a `tv_tensors.Mask` `(num_boxes, height, width)` of 0 and 1."""

CROP_ASPECT = (3 / 4, 4 / 3)  # of torchvision's RandomResizedCrop
MIN_BOX_SIDE_PX = 1.0


def build_transform(settings: FinetuneSettings, size: tuple[int, int], *, is_training: bool) -> nn.Module:
    """Return what turns a sample of any size into one of `size`, height and width in pixels, floats in [0, 1].

    Evaluation resizes only, exactly as `RadioImageProcessor` does with this `size`. Depth maps are not cropped in
    training either: a crop zooms, and a zoom changes how near things look.
    """
    steps: list[nn.Module] = _random_steps(settings, size) if is_training else []
    steps.append(v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True))
    if settings.task in BOX_TASKS:
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=MIN_BOX_SIDE_PX)]
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])


def _random_steps(settings: FinetuneSettings, size: tuple[int, int]) -> list[nn.Module]:
    strength = settings.color_jitter
    steps: list[nn.Module] = []
    if strength:
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if settings.crop_area_min < 1 and settings.task in BOX_TASKS:
        # A crop is kept only if it overlaps the boxes enough (SSD, https://arxiv.org/abs/1512.02325).
        steps.append(v2.RandomIoUCrop(min_scale=settings.crop_area_min**0.5))
        steps.append(v2.SanitizeBoundingBoxes(min_size=MIN_BOX_SIDE_PX))
        if settings.task == "instance-segmentation":
            steps.append(TightBoxes())
    elif settings.crop_area_min < 1 and settings.task != "depth-estimation":
        scale = (settings.crop_area_min, 1.0)
        steps.append(
            v2.RandomResizedCrop(size, scale=scale, ratio=CROP_ASPECT, interpolation=v2.InterpolationMode.BICUBIC)
        )
    if settings.flip_probability:
        steps.append(v2.RandomHorizontalFlip(settings.flip_probability))
    return steps


class TightBoxes(nn.Module):
    """Draws the boxes around what a crop left of the masks; where nothing is left they are empty."""

    def forward(self, sample: Sample) -> Sample:
        masks, boxes = sample["masks"].as_subclass(Tensor), torch.zeros(len(sample["masks"]), 4)
        is_left = masks.bool().flatten(1).any(dim=1)
        boxes[is_left] = masks_to_boxes(masks[is_left])
        boxes[is_left, 2:] += 1  # from the last pixel to its outer edge
        return {**sample, "boxes": tv_tensors.wrap(boxes, like=sample["boxes"])}
