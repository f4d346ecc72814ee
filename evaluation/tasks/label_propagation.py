"""Task on videos: the masks of given frames follow the features through the others; nothing is trained.

References:
    DINO, https://arxiv.org/abs/2104.14294, section 4.2.2, and its code, https://github.com/facebookresearch/dino; the
    constants below are its defaults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.core.files import check_output, write_folder
from modeling_radio.core.ranks import rank_and_count
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data_videos import FrameMasks, frames_of_videos
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation
from modeling_radio.evaluation.tasks.dense_prediction import masks_of
from modeling_radio.metrics.results import STUDENT, Measurement
from modeling_radio.metrics.video import boundary_accuracy, region_similarity


NUM_LAST_FRAMES = 7
"""Frames before the present one that give labels, beside the first."""
RADIUS = 12
"""Rows and columns of patches within which labels are looked for."""
NUM_NEIGHBORS = 5
TEMPERATURE = 0.1


def measure_label_propagation(evaluation: Evaluation) -> list[Measurement]:
    """Measure J&F, J and F: means over objects of the means over frames without the first and the last, as in DAVIS.

    With `predictions` the masks of the checkpoint are written too. Sets whose masks only a server has give no numbers.

    Raises:
        ValueError: If there is nothing to measure and no folder to write to, or it exists.
    """
    masks, folder = masks_of(evaluation.examples("videos")), evaluation.settings.predictions
    assert isinstance(masks, FrameMasks)  # the part's kind says so
    if folder is None and not masks.are_public:
        name = evaluation.part("videos").name
        raise ValueError(f"`predictions` must be a new folder: only the server of {name} has its masks, got none.")
    found, is_other = list[Measurement](), evaluation.model.name != STUDENT
    if is_other and not masks.are_public:
        return []
    if folder is None or is_other or rank_and_count()[0] > 0:
        return _propagate(evaluation, masks, None)
    check_output(folder, overwrite=False, name="predictions")
    write_folder(folder, lambda temporary: found.extend(_propagate(evaluation, masks, temporary)), overwrite=False)
    return found


@torch.no_grad()
def _propagate(evaluation: Evaluation, masks: FrameMasks, folder: Path | None) -> list[Measurement]:
    examples = evaluation.examples("videos")
    assert examples.groups is not None
    features = evaluation.features("videos", wanted=DENSE, size_px=evaluation.model.size_px)
    scores, videos, device = list[Tensor](), list[int](), evaluation.model.device
    every = frames_of_videos(examples.groups)
    for video, frames in enumerate(ProgressBar(every, desc="videos", leave=False, disable=None)):
        given = {number: masks[frame] for number, frame in enumerate(frames) if frame in masks.given}
        num_objects = int(max(mask.max() for mask in given.values()))
        labels = propagated((features.map(frame).to(device) for frame in frames), given)
        found = list[Tensor]()
        for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            ids = upsampled_labels(label.cpu(), evaluation.model.patch_size, next(iter(given.values())).shape)
            if number in given:  # later ones have the objects that appear there
                ids = torch.where((given[number] > 0) | (number == min(given)), given[number], ids)
            if folder is not None:
                _write_mask(ids, folder / masks.paths[frame].parent.name, masks.paths[frame])
            if masks.are_public and 0 < number < len(frames) - 1:
                found.append(object_scores(ids, masks[frame], num_objects))
        scores += [torch.stack(found).mean(0)] if found else []
        videos += [video] * num_objects
    if not scores:
        return []
    first, second = torch.cat(scores, dim=1)
    return [
        evaluation.mean("label_propagation", name, values, "videos", torch.tensor(videos))
        for name, values in (("J&F", (first + second) / 2), ("J", first), ("F", second))
    ]


def _write_mask(ids: Tensor, folder: Path, name: Path) -> None:
    """Write ids of objects as a PNG with a palette, whose indices they are."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(ids.numpy().astype(np.uint8)).convert("P").save(folder / name.name)


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


def propagated(maps: Iterable[Tensor], given: Mapping[int, Tensor]) -> list[Tensor]:
    """Return the labels of each frame on its patches, `(num_objects + 1, rows, cols)`.

    Given frames are kept for all later ones, and their objects replace what was propagated to their places; DINO has
    the first frame alone.

    Args:
        maps: Features of the frames, `(dim, rows, cols)`.
        given: Ids of the objects of given frames by number, `(height, width)`.
    """
    num_labels = int(max(mask.max() for mask in given.values())) + 1
    labels, last = list[Tensor](), deque[tuple[Tensor, Tensor]](maxlen=NUM_LAST_FRAMES)
    starts = list[tuple[Tensor, Tensor]]()
    for number, features in enumerate(maps):
        unit = F.normalize(features.float(), dim=0)
        own = given.get(number, torch.zeros(1, 1))
        ids = F.interpolate(own[None, None].float(), unit.shape[1:], mode="nearest-exact")[0, 0].long()
        found = F.one_hot(ids, num_labels).movedim(-1, 0).to(unit)
        if starts:
            found = torch.where(ids.to(unit.device) > 0, found, propagate(unit, [*starts, *last]))
        labels.append(found)
        if number in given:
            starts.append((unit, found))
        elif starts:
            last.append((unit, found))
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
    positions = torch.stack([ys.flatten(), xs.flatten()])
    return ((positions[:, :, None] - positions[:, None]).abs() <= radius).all(0)


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
