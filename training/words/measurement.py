"""A student with words beside its teacher: by the same words, and by the names that the teacher knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model_cards.results import Measurement
from modeling_radio.zero_shot_radio import DenseSource
from training.evaluation.data.base import EvaluationData
from training.evaluation.metrics.dense_probe import upsampled
from training.evaluation.models.radio import PatchTextModel, RadioFeatures, RadioTextFeatures
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.task_settings import TaskSettings
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.dense.segmentation import measure_open_vocabulary
from training.evaluation.tasks.zero_shot import TEMPLATES, measure_zero_shot
from training.teachers.embedded.efficientnet_lite import EfficientNetLiteTeacher


class TeacherWords(TeacherFeatures):
    """A classifier with the words of its student: its summary, and its last map, live in the space of the tower.

    Args:
        teacher: On its device.
        student: Whose text tower it uses.
    """

    text_adaptor: str | None = None

    def __init__(self, teacher: EfficientNetLiteTeacher, student: RadioTextFeatures) -> None:
        name = f"teacher {teacher.name}"
        super().__init__(teacher, patch_size=student.patch_size, size_px=student.size_px, name=name)
        self.student, self.classifier = student, teacher

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return a unit vector for each class, `(num_classes, summary_dim)`."""
        return self.student.embed_classes(class_names, templates)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return a unit vector for each text, `(num_texts, summary_dim)`."""
        return self.student.embed_texts(texts)

    def aligned_patches(self, pixels: Tensor, source: DenseSource) -> Tensor:
        """Return the map whose mean is the summary, on the student's grid, `(batch, summary_dim, rows, cols)`."""
        rows, cols = (side // self.patch_size for side in pixels.shape[-2:])
        return self.classifier.last_map(pixels, rows, cols)


def measure_words(
    student: RadioTextFeatures, teacher: EfficientNetLiteTeacher, data: EvaluationData, settings: TaskSettings
) -> list[Measurement]:
    """Measure zero-shot accuracy and open-vocabulary segmentation of a student with words, and of its teacher.

    Args:
        student: With the text tower; its other adaptors are not looked at.
        teacher: That the tower's rows are from.
        data: Labeled images and masks.
        settings: Of the tasks; ConSE has prompts of its own.
    """
    own = TeacherWords(teacher, student)
    plain = RadioFeatures(student.model, student.processor, name=student.name, size_px=student.size_px)
    by_names = Evaluation(plain, data, settings, find_teachers=lambda: {teacher.name: own})
    measured = [replace(each, model=f"{each.model}, ConSE") for each in measure_zero_shot(by_names)]
    for model in (own, student):
        evaluation = Evaluation(model, data, settings)
        measured += [*measure_zero_shot(evaluation), *measure_open_vocabulary(evaluation)]
    return measured


@torch.no_grad()
def segment_scenes(model: PatchTextModel, images: Tensor, class_names: Sequence[str], settings: TaskSettings) -> Tensor:
    """Return the class of each pixel by words, indices into `class_names`, `(num_images, height, width)`.

    Args:
        model: A student or teacher with words.
        images: uint8 RGB squares as large as the model sees them, `(num_images, 3, height, width)`.
        class_names: What a pixel may be.
        settings: With the prompts, and where the patches' place among texts comes from.
    """
    texts = model.embed_classes(class_names, TEMPLATES[settings.templates])
    pixels = torch.stack([model.preprocess(image, model.size_px) for image in images])
    patches = F.normalize(model.aligned_patches(pixels, settings.dense_source).float(), dim=1)
    cosines = torch.einsum("bdrc,nd->bnrc", patches, texts)
    return upsampled(cosines, (images.shape[-2], images.shape[-1])).argmax(dim=1)
