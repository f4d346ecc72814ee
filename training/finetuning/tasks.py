"""The tasks by name."""

from __future__ import annotations

from training.finetuning.classification import ClassificationTask
from training.finetuning.depth import DepthTask
from training.finetuning.detection import DetectionTask
from training.finetuning.segmentation import SegmentationTask
from training.finetuning.settings import FinetuneSettings
from training.finetuning.sources import LabelledImages
from training.finetuning.task import FinetuningTask


TASK_CLASSES: dict[str, type[FinetuningTask]] = {
    "image-classification": ClassificationTask,
    "semantic-segmentation": SegmentationTask,
    "object-detection": DetectionTask,
    "depth-estimation": DepthTask,
}


def build_task(settings: FinetuneSettings, images: LabelledImages) -> FinetuningTask:
    """Return the task that the settings name."""
    return TASK_CLASSES[settings.task](settings, images)
