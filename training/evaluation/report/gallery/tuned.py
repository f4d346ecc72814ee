"""Sections of the gallery for folders of task models: classes of pixels, depth, and classes of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from foundation.checkpoints import read_config
from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioImageProcessor,
)
from modeling_radio.class_scores_radio import class_scores
from training.evaluation.report.page import Picture, Row, Section
from training.evaluation.report.panels import overlaid
from training.pictures.class_colors import class_color
from training.pictures.similarity import similarity_colors


MODELS = {
    model.__name__: model
    for model in (RadioForSemanticSegmentation, RadioForDepthEstimation, RadioForImageClassification)
}


class TaskModel(NamedTuple):
    """A tuned model.

    Attributes:
        folder: It was opened from.
        model: In eval mode.
        processor: What makes its pixels.
    """

    folder: Path
    model: Any
    processor: RadioImageProcessor

    @property
    def labels(self) -> dict[int, str]:
        """Names of the classes, by number."""
        return cast(dict[int, str], self.model.config.id2label)


def open_task_models(folders: Sequence[Path]) -> list[TaskModel]:
    """Open folders of task models.

    Raises:
        ValueError: If a folder is no model for one of the tasks that can be shown.
    """
    opened = []
    for folder in folders:
        (name,) = read_config(folder).get("architectures") or [""]
        if name not in MODELS:
            raise ValueError(
                f"`tasks` must be folders of {sorted(MODELS)}, got {str(folder)!r} of {name!r}. Leave it out."
            )
        model = MODELS[name].from_pretrained(folder).eval()
        opened.append(TaskModel(folder, model, RadioImageProcessor.from_pretrained(folder)))
    return opened


@torch.no_grad()
def task_section(task: TaskModel, photographs: Tensor, names: Sequence[str]) -> Section:
    """Show what a task model says of photographs.

    Args:
        task: The model.
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        names: Of the photographs.
    """
    rows, seen = [], set[int]()
    for image, name in zip(photographs, names, strict=True):
        outputs = task.model(task.processor(image, return_tensors="pt")["pixel_values"])
        shown, caption = _drawn(task, outputs, image, seen)
        rows.append(Row(name, [Picture(image, name, "photograph"), Picture(shown, f"{name}: {caption}", caption)]))
    labels = task.labels
    legend = [(labels[index], "rgb({}, {}, {})".format(*class_color(index))) for index in sorted(seen)]
    return Section(f"Task: {task.folder.name}", f"{type(task.model).__name__} in {task.folder}.", rows, legend)


def _class_of(task: TaskModel, logits: Tensor) -> str:
    """Return the likeliest label with its score as the pipeline has it, or of a regression its numbers."""
    scores = class_scores(logits, task.model.config)
    if task.model.config.problem_type == "regression":
        return ", ".join(f"{task.labels[index]} {value:.2f}" for index, value in enumerate(scores.tolist()))
    score, label = scores.max(dim=0)
    return f"{task.labels[int(label)]}, {float(score):.2f}"


def _drawn(task: TaskModel, outputs: Any, image: Tensor, seen: set[int]) -> tuple[Tensor, str]:
    """Return the picture of an answer and what it is; classes of pixels are added to `seen`."""
    size = [tuple(image.shape[1:])]
    if isinstance(task.model, RadioForImageClassification):
        return image, _class_of(task, outputs.logits[0])
    if isinstance(task.model, RadioForDepthEstimation):
        depth = task.processor.post_process_depth_estimation(outputs, size)[0]["predicted_depth"]
        near, far = float(depth.min()), float(depth.max())
        colors = similarity_colors((depth[None] - near) / max(far - near, 1e-6))[0]
        return (colors.movedim(-1, 0) * 255).round().to(torch.uint8), f"depth, {near:.2g} (dark) to {far:.2g}"
    mask = cast(Tensor, task.processor.post_process_semantic_segmentation(outputs, size)[0])
    seen.update(mask.unique().tolist())
    return overlaid(image, mask), "classes"
