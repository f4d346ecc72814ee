"""The small heads with which a frozen teacher of the demo does a task."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.depth_radio import scale_invariant_loss
from training.finetuning.tasks.base import FinetuningTask
from training.finetuning.tasks.classification import ClassificationTask, MultiLabelTask
from training.finetuning.tasks.depth import DepthTask
from training.finetuning.tasks.segmentation import SegmentationTask
from training.finetuning.tasks.zero_shot import ZeroShotTask


class TeacherHead(nn.Module, ABC):
    """What a teacher's answers are made into.

    Args:
        task: Of the student.
        answers: Of the training images, `(num_images, width)` or, where the head `is_dense`, `(num_images, width, rows,
            columns)`.
        labels: Of the training images.

    Attributes:
        is_dense: Whether it takes the teacher's features, not its summary.
    """

    is_dense = False

    @abstractmethod
    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor) -> None:
        super().__init__()

    @abstractmethod
    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar that is minimized."""

    def decide(self, predictions: Tensor) -> Tensor:
        """Return what the task's score takes."""
        return predictions


class ClassHead(TeacherHead):
    """Layer norm and a linear layer: logits `(batch, num_classes)` of one class an image."""

    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor) -> None:
        super().__init__(task, answers, labels)
        width = answers.shape[1]
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(task.class_names)))

    def forward(self, answers: Tensor) -> Tensor:
        return self.layers(answers)

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(predictions, labels)


class LabelsHead(ClassHead):
    """The same for several classes an image."""

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(predictions, labels)

    def decide(self, predictions: Tensor) -> Tensor:
        return predictions.sigmoid()


class MapHead(TeacherHead):
    """Batch norm and a linear layer in each place, resized to the labels: `(batch, channels, height, width)`."""

    is_dense = True

    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor, num_channels: int) -> None:
        super().__init__(task, answers, labels)
        width = answers.shape[1]
        self.size = labels.shape[-2:]
        self.layers = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, num_channels, 1))

    def forward(self, answers: Tensor) -> Tensor:
        return F.interpolate(self.layers(answers), self.size, mode="bilinear", align_corners=False)


class MaskHead(MapHead):
    """A class in each place."""

    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor) -> None:
        super().__init__(task, answers, labels, len(task.class_names))
        assert isinstance(task, SegmentationTask)
        self.ignore_index = task.ignore_index

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(predictions, labels, ignore_index=self.ignore_index)

    def decide(self, predictions: Tensor) -> Tensor:
        return predictions.argmax(dim=1)


class DepthHead(MapHead):
    """Depth in each place, `(batch, height, width)`: the exponential of a linear layer that starts at the mean."""

    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor) -> None:
        super().__init__(task, answers, labels, 1)
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, float(labels[labels > 0].log().mean()))

    def forward(self, answers: Tensor) -> Tensor:
        return super().forward(answers).squeeze(1).exp()

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        return scale_invariant_loss(predictions, labels)


class WordsHead(TeacherHead):
    """A projection that starts as none, among the texts of a student whose text tower lives in the teacher's space."""

    text_embeds: Tensor

    def __init__(self, task: FinetuningTask, answers: Tensor, labels: Tensor) -> None:
        super().__init__(task, answers, labels)
        assert isinstance(task, ZeroShotTask)
        student = RadioForZeroShotImageClassification.from_pretrained(task.settings.checkpoint)
        task.prepare(student)
        self.scale = float(student.logit_scale.exp())
        self.register_buffer("text_embeds", task.text_embeds)
        self.projection = nn.Linear(answers.shape[1], task.text_embeds.shape[1])
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, answers: Tensor) -> Tensor:
        return self.scale * F.normalize(self.projection(answers), dim=1) @ self.text_embeds.T

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(predictions, labels)


HEADS: dict[type[FinetuningTask], type[TeacherHead]] = {
    ClassificationTask: ClassHead,
    MultiLabelTask: LabelsHead,
    SegmentationTask: MaskHead,
    DepthTask: DepthHead,
    ZeroShotTask: WordsHead,
}
"""For each task that can be done with one; boxes and instances take a decoder."""


def head_class(task: FinetuningTask) -> type[TeacherHead]:
    """Return the head of a task.

    Raises:
        ValueError: If the task has none.
    """
    if type(task) not in HEADS:
        raise ValueError(f"`task` must be one that a head of one layer can do, got {task.settings.task!r}.")
    return HEADS[type(task)]
