"""Labeled images of a fine-tuning run: augmented, and repeated where classes are rare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from modeling_radio.data.labeled.images import Targets
from modeling_radio.tuning.channels import clamped, jittered
from modeling_radio.tuning.settings import BALANCED, FinetuneSettings, TaskDataSettings


Sample = dict[str, Any]
"""`image`, a `tv_tensors.Image` of uint8 RGB or of other channels in [0, 1], and its target: `label`, a number or a
list; `mask` or `depth`, a `tv_tensors.Mask` `(height, width)`; or `boxes`, `tv_tensors.BoundingBoxes` with corners in
pixels, `labels`, and where objects have outlines `masks`, a `tv_tensors.Mask` `(num_boxes, height, width)` of 0 and
1."""

CROP_ASPECT = (3 / 4, 4 / 3)  # of torchvision's RandomResizedCrop
MIN_BOX_SIDE_PX = 1.0
REPEAT_THRESHOLD = 1e-3  # share of the images below which a class is rare, as in LVIS


class Augmentation(NamedTuple):
    """Random changes of training images.

    Attributes:
        crop_area_min: Smallest share of the image that a random crop keeps; 1 crops nothing.
        flip_probability: Probability of a horizontal flip.
        color_jitter: Strength of random brightness, contrast and saturation; 0 for none.
    """

    crop_area_min: float = 1.0
    flip_probability: float = 0.0
    color_jitter: float = 0.0


AUGMENTATIONS = {
    "none": Augmentation(),
    "light": Augmentation(crop_area_min=0.7, color_jitter=0.1),  # our choice: no letter becomes another one
    # Our choice between torchvision's crops of 0.08 for training from scratch and none.
    "photographs": Augmentation(crop_area_min=0.35, flip_probability=0.5, color_jitter=0.2),
}
OF_WHOLE_IMAGES, OF_PARTS = "none", "photographs"
"""Augmentation by default for labels of whole images (docs/explanation/tuning_study.md), and for boxes and maps."""


def build_transform(
    settings: TaskDataSettings, targets: Targets, size: tuple[int, int], *, is_training: bool
) -> nn.Module:
    """Return the transform of a sample of any size to `size`, height and width in pixels, with values in [0, 1].

    Evaluation resizes only, exactly as `RadioImageProcessor` does with this `size`.
    """
    steps: list[nn.Module] = []
    if is_training and isinstance(settings, FinetuneSettings):
        steps += _random_steps(settings, targets, size)
    steps.append(v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True))
    if targets.have_boxes:
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=MIN_BOX_SIDE_PX)]
    if settings.num_channels is not None:
        steps.append(v2.Lambda(clamped, tv_tensors.Image))  # resizing overshoots
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])


def _random_steps(settings: FinetuneSettings, targets: Targets, size: tuple[int, int]) -> list[nn.Module]:
    chosen = AUGMENTATIONS[settings.augment or (OF_WHOLE_IMAGES if targets.are_of_images else OF_PARTS)]
    strength = chosen.color_jitter
    steps: list[nn.Module] = []
    if strength and settings.num_channels is not None:
        steps.append(v2.Lambda(partial(jittered, strength=strength), tv_tensors.Image))
    elif strength:
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if chosen.crop_area_min < 1 and targets.have_boxes:
        # A crop is kept only if it overlaps the boxes enough (SSD, https://arxiv.org/abs/1512.02325).
        steps.append(v2.RandomIoUCrop(min_scale=chosen.crop_area_min**0.5))
        steps.append(v2.SanitizeBoundingBoxes(min_size=MIN_BOX_SIDE_PX))
        if targets.have_outlines:
            steps.append(TightBoxes())
    elif chosen.crop_area_min < 1 and targets.allow_crops:
        scale = (chosen.crop_area_min, 1.0)
        steps.append(
            v2.RandomResizedCrop(size, scale=scale, ratio=CROP_ASPECT, interpolation=v2.InterpolationMode.BICUBIC)
        )
    if chosen.flip_probability:
        steps.append(v2.RandomHorizontalFlip(chosen.flip_probability))
    return steps


class TightBoxes(nn.Module):
    """Fits the boxes to cropped masks; the boxes of empty masks are empty."""

    def forward(self, sample: Sample) -> Sample:
        masks, boxes = sample["masks"].as_subclass(Tensor), torch.zeros(len(sample["masks"]), 4)
        is_left = masks.bool().flatten(1).any(dim=1)
        boxes[is_left] = masks_to_boxes(masks[is_left])
        boxes[is_left, 2:] += 1  # from the last pixel to its outer edge
        return {**sample, "boxes": tv_tensors.wrap(boxes, like=sample["boxes"])}


def image_weights(sampler: str, classes: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Return the mean number of times that each image is shown in an epoch, `(num_images,)`.

    Args:
        sampler: "balanced": every class is shown equally often, and an epoch keeps its number of images.
            "repeat-factor": an image whose rarest class has a share f of all images below t = `REPEAT_THRESHOLD` is
            shown sqrt(t / f) times, and all others once, so that an epoch grows.
        classes: Ids of the classes of each image.
        num_classes: Number of classes.

    Raises:
        ValueError: If "balanced" is chosen for images with no class or several.

    References:
        LVIS, appendix B.2. https://arxiv.org/abs/1908.03195
    """
    shown = torch.tensor([number for image in classes for number in set(image)], dtype=torch.long)
    counts = shown.bincount(minlength=num_classes)
    if sampler == BALANCED:
        several = next((len(image) for image in classes if len(image) != 1), None)
        if several is not None:
            raise ValueError(
                f"`sampler` 'balanced' is for one class an image, but one has {several}: choose 'repeat-factor'."
            )
        shares = len(classes) / (counts.count_nonzero() * counts.clamp(min=1).double())
        return shares[[image[0] for image in classes]]
    factors = (REPEAT_THRESHOLD * len(classes) / counts.clamp(min=1).double()).sqrt().clamp(min=1)
    return torch.stack([factors[list(image)].max() if image else factors.new_ones(()) for image in classes])


def draw_images(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images of an epoch, each as often as its weight, rounded up or down at random, in no order.

    Systematic sampling: equally spaced points, shifted at random, on a line divided by the weights.

    Args:
        weights: Mean number of times of each image, `(num_images,)`.
        generator: Random numbers for the shift and the order on the line.

    Returns:
        Indices, as many as the rounded sum of the weights.
    """
    order = torch.randperm(len(weights), generator=generator)
    ends = weights[order].cumsum(0)
    count = epoch_length(weights)
    points = (torch.arange(count) + torch.rand((), generator=generator)) * (ends[-1] / count)
    return order[torch.searchsorted(ends, points.to(ends), right=True).clamp(max=len(weights) - 1)]


def epoch_length(weights: Tensor) -> int:
    """Return the number of images of an epoch."""
    return max(round(float(weights.sum())), 1)


def choose_weights(
    setting: str | tuple[float, ...], class_names: tuple[str, ...], count: Callable[[], Tensor]
) -> list[float]:
    """Return one weight for each class.

    Args:
        setting: The weights, or "balanced" for total / (number of classes that occur * count), with which all classes
            count alike. A class that does not occur gets the weight 1.
        class_names: The classes.
        count: Function that returns the frequency of each class in the training images, `(num_classes,)`.

    Raises:
        ValueError: If there are more or fewer weights than classes.

    References:
        "balanced" of scikit-learn, after King and Zeng, 2001, Logistic regression in rare events data.
    """
    if setting == BALANCED:
        counts = count()
        occurring = counts > 0
        weights = counts.sum() / (occurring.sum() * counts.clamp(min=1))
        return weights.where(occurring, 1.0).tolist()
    if len(setting) != len(class_names):
        raise ValueError(
            f"`class_weights` must have one number for each of the {len(class_names)} classes "
            f"({', '.join(class_names)}), got {len(setting)}."
        )
    return [float(weight) for weight in setting]
