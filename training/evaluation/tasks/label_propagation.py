"""Task on videos: the masks of the first frame follow the features through the others; nothing is trained.

References:
    DINO, https://arxiv.org/abs/2104.14294, section 4.2.2, and its code, https://github.com/facebookresearch/dino; the
    constants below are its defaults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.core.timing import ProgressBar
from modeling_radio.model_cards.results import Measurement
from modeling_radio.training.evaluation.data_videos import frames_of_videos
from modeling_radio.training.evaluation.metrics.video import boundary_accuracy, region_similarity
from modeling_radio.training.evaluation.tasks.base import DENSE, Evaluation
from modeling_radio.training.evaluation.tasks.dense_prediction import masks_of


NUM_LAST_FRAMES = 7
"""Frames before the present one that give labels, beside the first."""
RADIUS = 12
"""Rows and columns of patches within which labels are looked for."""
NUM_NEIGHBORS = 5
TEMPERATURE = 0.1


@torch.no_grad()
def measure_label_propagation(evaluation: Evaluation) -> list[Measurement]:
    """Measure J&F, J and F of DAVIS: means over objects of the means over frames without the first and the last."""
    examples = evaluation.examples("videos")
    assert examples.groups is not None
    features = evaluation.features("videos", wanted=DENSE, size_px=evaluation.model.size_px)
    masks, device = masks_of(examples), evaluation.model.device
    regions, boundaries, videos = list[Tensor](), list[Tensor](), list[int]()
    every = frames_of_videos(examples.groups)
    for video, frames in enumerate(ProgressBar(every, desc="videos", leave=False, disable=None)):
        first = masks[frames[0]]
        labels = propagated((features.map(frame).to(device) for frame in frames), first)
        scores = []
        for frame, label in list(zip(frames, labels, strict=True))[1:-1]:
            predicted = upsampled_labels(label.cpu(), evaluation.model.patch_size, first.shape)
            scores.append(object_scores(predicted, masks[frame], int(first.max())))
        region, edge = torch.stack(scores).mean(0)
        regions, boundaries, videos = [*regions, region], [*boundaries, edge], videos + [video] * len(region)
    first, second = torch.cat(regions), torch.cat(boundaries)
    return [
        evaluation.mean("label_propagation", name, scores, "videos", torch.tensor(videos))
        for name, scores in (("J&F", (first + second) / 2), ("J", first), ("F", second))
    ]


def object_scores(predicted: Tensor, true: Tensor, num_objects: int) -> Tensor:
    """Return J and F of each object, `(2, num_objects)`.

    Args:
        predicted: Ids of objects, `(height, width)`; 0 is background.
        true: The true ones.
        num_objects: Number of objects.
    """
    pairs = [(predicted == number, true == number) for number in range(1, num_objects + 1)]
    found = [[region_similarity(*pair) for pair in pairs], [boundary_accuracy(*pair) for pair in pairs]]
    return torch.tensor(found, dtype=torch.float64)


def propagated(maps: Iterable[Tensor], first: Tensor) -> list[Tensor]:
    """Return the labels of each frame on its patches, `(num_objects + 1, rows, cols)`.

    Args:
        maps: Features of the frames, `(dim, rows, cols)`.
        first: Ids of the objects of the first frame, `(height, width)`.
    """
    labels, last = list[Tensor](), deque[tuple[Tensor, Tensor]](maxlen=NUM_LAST_FRAMES)
    start: tuple[Tensor, Tensor] | None = None
    for features in maps:
        unit = F.normalize(features.float(), dim=0)
        if start is None:
            ids = F.interpolate(first[None, None].float(), unit.shape[1:], mode="nearest-exact")[0, 0].long()
            start = unit, F.one_hot(ids, int(first.max()) + 1).movedim(-1, 0).to(unit)
            labels.append(start[1])
            continue
        labels.append(propagate(unit, [start, *last]))
        last.append((unit, labels[-1]))
    return labels


def propagate(features: Tensor, known: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the labels of a frame: the mean of those of the most similar patches near each patch.

    Args:
        features: Unit features of the frame, `(dim, rows, cols)`.
        known: Unit features and labels, `(num_labels, rows, cols)`, of other frames.
    """
    rows, cols = features.shape[1:]
    near = within_radius(rows, cols, RADIUS).to(features.device)
    weights = torch.cat(
        [(other.flatten(1).T @ features.flatten(1) / TEMPERATURE).exp() * near for other, _ in known]
    )  # (num_known * patches, patches)
    least = weights.topk(min(NUM_NEIGHBORS, len(weights)), dim=0).values[-1]
    weights = weights.masked_fill(weights < least, 0)
    labels = torch.cat([each.flatten(1) for _, each in known], dim=1)
    return (labels @ (weights / weights.sum(0))).unflatten(1, (rows, cols))


@lru_cache(maxsize=1)  # all frames of a video have one grid
def within_radius(rows: int, cols: int, radius: int) -> Tensor:
    """Return which patches are at most so many rows and columns from each other, bool `(patches, patches)`."""
    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    places = torch.stack([ys.flatten(), xs.flatten()])
    return ((places[:, :, None] - places[:, None]).abs() <= radius).all(0)


def upsampled_labels(labels: Tensor, patch_size: int, size: Sequence[int]) -> Tensor:
    """Return ids of objects at a frame's size, `(height, width)`; each object's labels are stretched to [0, 1] first.

    Args:
        labels: `(num_labels, rows, cols)`.
        patch_size: Pixels of a patch.
        size: Height and width of the frame.
    """
    full = F.interpolate(labels[None], scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    highest, least = full.amax((1, 2), keepdim=True), full.amin((1, 2), keepdim=True)
    stretched = torch.where(highest > least, (full - least) / (highest - least), full)
    ids = stretched.argmax(0)
    return F.interpolate(ids[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].long()
