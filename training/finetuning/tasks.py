"""The tasks by name."""

from __future__ import annotations

from modeling_radio.classification_radio import ProblemType
from training.finetuning.classification import ClassificationTask, MultiLabelTask, RegressionTask
from training.finetuning.depth import DepthTask
from training.finetuning.detection import DetectionTask
from training.finetuning.instances import InstanceSegmentationTask
from training.finetuning.segmentation import SegmentationTask
from training.finetuning.settings import FinetuneSettings
from training.finetuning.sources import LabelledImages
from training.finetuning.task import FinetuningTask


TASK_CLASSES: dict[str, type[FinetuningTask]] = {
    "image-classification": ClassificationTask,
    "semantic-segmentation": SegmentationTask,
    "object-detection": DetectionTask,
    "instance-segmentation": InstanceSegmentationTask,
    "depth-estimation": DepthTask,
}

CLASSIFICATION_CLASSES: dict[ProblemType, type[FinetuningTask]] = {
    "single_label_classification": ClassificationTask,
    "multi_label_classification": MultiLabelTask,
    "regression": RegressionTask,
}


def build_task(settings: FinetuneSettings, images: LabelledImages) -> FinetuningTask:
    """Return the task that the settings name; for image classification the labels decide which kind it is."""
    if images.problem_type is not None:
        return CLASSIFICATION_CLASSES[images.problem_type](settings, images)
    return TASK_CLASSES[settings.task](settings, images)
