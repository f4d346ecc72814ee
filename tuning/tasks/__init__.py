"""Tasks by name; a file for each group of tasks reads, scores and draws its data."""

from __future__ import annotations

from modeling_radio.heads_radio import ProblemType
from modeling_radio.tuning.data import LabeledImages
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks.base import FinetuningTask
from modeling_radio.tuning.tasks.classification import (
    ClassificationTask,
    MultiLabelTask,
    RegressionTask,
    ZeroShotTask,
)
from modeling_radio.tuning.tasks.dense import DepthTask, SegmentationTask
from modeling_radio.tuning.tasks.detection import DetectionTask, InstanceSegmentationTask


TASK_CLASSES: dict[str, type[FinetuningTask]] = {
    "image-classification": ClassificationTask,
    "semantic-segmentation": SegmentationTask,
    "object-detection": DetectionTask,
    "instance-segmentation": InstanceSegmentationTask,
    "depth-estimation": DepthTask,
    "zero-shot-image-classification": ZeroShotTask,
}

CLASSIFICATION_CLASSES: dict[ProblemType, type[FinetuningTask]] = {
    "single_label_classification": ClassificationTask,
    "multi_label_classification": MultiLabelTask,
    "regression": RegressionTask,
}


def build_task(settings: FinetuneSettings, images: LabeledImages) -> FinetuningTask:
    """Return the task that the settings name; for image classification the labels decide its kind."""
    if settings.task == "image-classification" and images.problem_type is not None:
        return CLASSIFICATION_CLASSES[images.problem_type](settings, images)
    return TASK_CLASSES[settings.task](settings, images)
