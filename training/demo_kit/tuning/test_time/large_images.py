"""Large images made of held-out scenes, whose objects are as small in them as a tuned model saw them large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.finetuning.tasks.base import Batch


PLACES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
"""Of four scenes in rows of two: scenes to the left and above of each."""


def join_scenes(scenes: Sequence[Batch]) -> Batch:
    """Return four scenes beside each other as one, with twice the height and width.

    Args:
        scenes: Examples of equal size, with maps `(height, width)` or with boxes as `labels`.

    Raises:
        ValueError: If there are not four.
    """
    if len(scenes) != len(PLACES):
        raise ValueError(f"`scenes` must be {len(PLACES)}, got {len(scenes)}.")
    labels = [scene["labels"] for scene in scenes]
    joined = _join_maps(labels) if isinstance(labels[0], Tensor) else _join_objects(labels)
    return {"pixel_values": _join_maps([scene["pixel_values"] for scene in scenes]), "labels": joined}


def join_all(scenes: Sequence[Batch]) -> list[Batch]:
    """Return each four scenes that follow each other as one; up to three are left over."""
    count = len(PLACES)
    return [join_scenes(scenes[start : start + count]) for start in range(0, len(scenes) - count + 1, count)]


def _join_maps(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.cat([*maps[row : row + 2]], dim=-1) for row in (0, 2)], dim=-2)


def _join_objects(objects: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return objects whose boxes, centers and sizes as shares of a scene, become shares of the joined image."""
    shifts = torch.cat([PLACES, torch.zeros_like(PLACES)], dim=1)
    boxes = [(each["boxes"] + shift) / 2 for each, shift in zip(objects, shifts, strict=True)]
    return {"boxes": torch.cat(boxes), "class_labels": torch.cat([each["class_labels"] for each in objects])}
