"""Connected regions of a map of words: their boxes, and their outlines drawn anew by SAM3.

References:
    RADSeg (RADSeg+), https://arxiv.org/abs/2511.19704; Trident, https://arxiv.org/abs/2411.09219. Numbers are those of
    RADSeg's code (MIT), https://github.com/RADSeg-OVSS/RADSeg at 05ec86f.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


LEAST_PROBABILITY = 0.1
"""Pixels below are of no region: `coarse_thresh`."""
LEAST_AREA = 225
"""Smaller regions are not given to SAM, in pixels of maps of half the size: `minimal_area`."""
MASK_FACTOR = 0.005
"""Factor on the probabilities that SAM gets as a mask: `sam_mask_coff`."""
LEAST_IOU = 0.9
"""Masks that SAM itself rates lower are not taken: `sam_iou_thresh`."""
REGIONS_AT_ONCE = 64
"""Our choice: regions whose masks SAM predicts in one pass, as many as the points of transformers' mask generation."""


class Regions(NamedTuple):
    """Connected regions of a map.

    Attributes:
        numbers: Region of each place, `(height, width)`; -1 where there is none.
        labels: Class of each region, `(num_regions,)`.
        scores: Mean probability of that class within it, `(num_regions,)`.
        areas: Number of its places, `(num_regions,)`.
        boxes: Left, upper, right and lower edge, `(num_regions, 4)`; the last place is inside.
    """

    numbers: Tensor
    labels: Tensor
    scores: Tensor
    areas: Tensor
    boxes: Tensor


def connected_parts(labels: Tensor) -> Tensor:
    """Return a number for each place, `(height, width)`, that neighbors of one label share, also diagonal ones.

    Each place takes the largest index in its neighborhood, then the number that the place of that index has: the way is
    halved in each round, whatever the shape.

    Args:
        labels: Integers, `(height, width)`.

    Returns:
        Numbers from 0 on.
    """
    numbers = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
    while True:
        found = numbers
        for axes, shifts in (((0,), (1,)), ((1,), (1,)), ((0, 1), (1, 1)), ((0, 1), (1, -1))):
            found = _take_larger(labels, found, axes, shifts)
            found = _take_larger(labels, found, axes, tuple(-shift for shift in shifts))
        found = found.flatten()[found]
        if torch.equal(found, numbers):
            return torch.unique(numbers, return_inverse=True)[1]
        numbers = found


def _take_larger(labels: Tensor, numbers: Tensor, axes: tuple[int, ...], shifts: tuple[int, ...]) -> Tensor:
    """Return the larger number of each place and of its neighbor in one direction, if that has the same label."""
    is_same = labels.roll(shifts, axes) == labels
    for axis, shift in zip(axes, shifts, strict=True):  # nobody has a neighbor beyond the edge
        is_same.narrow(axis, 0 if shift > 0 else labels.shape[axis] - 1, 1).fill_(False)
    return torch.where(is_same, numbers.roll(shifts, axes).maximum(numbers), numbers)


def find_regions(probabilities: Tensor, least: float = 0.0, least_area: float = 0.0) -> Regions:
    """Return the connected regions of the most likely classes.

    Args:
        probabilities: `(num_classes, height, width)`.
        least: Places whose probability is lower are of no region.
        least_area: Smaller regions are left out, in places.
    """
    winners, labels = probabilities.max(dim=0)
    labels = labels.masked_fill(winners < least, -1)
    parts, width = connected_parts(labels), labels.shape[1]
    flat = parts.flatten()
    places = torch.arange(len(flat), device=flat.device)
    count = int(flat.max()) + 1

    def by_part(values: Tensor, how: str) -> Tensor:
        return values.new_zeros(count).scatter_reduce(0, flat, values, how, include_self=False)

    areas, classes = flat.bincount(minlength=count), by_part(labels.flatten(), "amax")
    left, top = by_part(places % width, "amin"), by_part(places // width, "amin")
    right, bottom = by_part(places % width, "amax") + 1, by_part(places // width, "amax") + 1
    is_kept = (classes >= 0) & (areas >= least_area)
    new_numbers = torch.where(is_kept, is_kept.cumsum(0) - 1, -1)
    boxes = torch.stack([left, top, right, bottom], dim=1)
    scores = by_part(winners.flatten(), "mean")
    return Regions(new_numbers[parts], classes[is_kept], scores[is_kept], areas[is_kept], boxes[is_kept])


def refine_by_sam(sam: Any, pixel_values: Tensor, probabilities: Tensor, least_iou: float = LEAST_IOU) -> Tensor:
    """Let SAM3 draw the outline of each region anew.

    A region's box, its most certain place and the probabilities of its class are the prompts. Pixels of a mask get
    SAM's probability times that of the class. Regions whose mask SAM rates low keep their own outline, and pixels that
    no mask covers their own class.

    Args:
        sam: Transformers' `Sam3TrackerModel`.
        pixel_values: RGB images in [0, 1], `(batch, 3, height, width)`, of any size; SAM sees them at its own.
        probabilities: `(batch, num_classes, rows, cols)`; 0 for classes that are left out.
        least_iou: Masks that SAM rates lower are not taken.

    Returns:
        `(batch, num_classes, height, width)`; they need not sum to 1.

    Raises:
        ValueError: If `sam` is another model.
    """
    model_type = sam.config.model_type
    if model_type != "sam3_tracker":
        raise ValueError(f"`sam` must be a `Sam3TrackerModel` of transformers, got a model of type {model_type!r}.")
    height, width = pixel_values.shape[-2:]
    enlarged = _resized(probabilities.float(), (height, width))
    side = sam.config.vision_config.image_size
    images = _resized(pixel_values.float(), (side, side)) * 2 - 1  # SAM3's own normalization
    pairs = zip(images.to(sam.device, sam.dtype), enlarged, strict=True)
    return torch.stack([_refine_image(sam, image[None], each, least_iou) for image, each in pairs])


def _refine_image(sam: Any, image: Tensor, probabilities: Tensor, least_iou: float) -> Tensor:
    """Refine the map of one image, `(num_classes, height, width)`; the image has SAM's size."""
    height, width = probabilities.shape[-2:]
    coarse = _resized(probabilities[None], (max(height // 2, 1), max(width // 2, 1)))[0]
    regions = find_regions(coarse, LEAST_PROBABILITY, LEAST_AREA)
    embeddings = sam.get_image_embeddings(image)
    refined, has_failed = torch.zeros_like(probabilities), torch.zeros_like(probabilities[0], dtype=torch.bool)
    for label in regions.labels.unique().tolist():
        chosen = (regions.labels == label).nonzero().flatten()
        for some in chosen.split(REGIONS_AT_ONCE):
            masks, ratings = _draw(sam, embeddings, coarse[label], regions, some)
            is_good = ratings > least_iou
            failed = torch.isin(regions.numbers, some[~is_good])[None, None].float()
            has_failed |= F.interpolate(failed, (height, width), mode="nearest")[0, 0] > 0
            if is_good.any():
                drawn = _resized(masks[is_good][None], (height, width))[0]
                inside = (drawn > 0).any(dim=0)
                likely = (drawn.sigmoid() * probabilities[label]).amax(dim=0)
                refined[label] = refined[label].maximum(likely * inside)
    refined = refined.maximum(probabilities * has_failed)
    return torch.where(refined.sum(dim=0) == 0, probabilities, refined)


def _draw(sam: Any, embeddings: Any, likely: Tensor, regions: Regions, some: Tensor) -> tuple[Tensor, Tensor]:
    """Return SAM's masks of some regions of one class as logits, `(num_regions, rows, cols)`, and its ratings of them.

    Args:
        sam: The model.
        embeddings: Those of the image.
        likely: Probability of the class, `(height, width)`.
        regions: All regions of a map of this size.
        some: Indices of the regions.
    """
    height, width = likely.shape
    side = sam.config.vision_config.image_size
    scale = torch.tensor([side / width, side / height], device=likely.device)
    boxes = regions.boxes[some] * scale.repeat(2) - 0.5  # SAM itself adds the half again
    inside = likely.where(regions.numbers == some[:, None, None], -1.0)
    best = inside.flatten(1).argmax(dim=1)
    points = (torch.stack([best % width, best // width], dim=1) + 0.5) * scale - 0.5
    prompt = _resized(likely[None, None], sam.prompt_encoder.mask_input_size)
    prompt = torch.where(prompt > LEAST_PROBABILITY, MASK_FACTOR * prompt, 0.0)
    output = sam(
        image_embeddings=embeddings,
        input_points=points[None, :, None].to(sam.device, sam.dtype),
        input_boxes=boxes[None].to(sam.device, sam.dtype),
        input_masks=prompt.to(sam.device, sam.dtype),
        multimask_output=False,
    )
    return output.pred_masks[0, :, 0].to(likely), output.iou_scores[0, :, 0].to(likely)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
