"""What all seeds of a comparison share: data, teachers, the teachers' features; and what is measured with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from model_cards.results import STUDENT, Measurement
from modeling_radio import RadioModel
from training.evaluation.extractors import (
    FeatureExtractor,
    Features,
    adaptor_extractor,
    backbone_extractor,
)
from training.evaluation.tasks import (
    EvaluationData,
    measure_adaptor_fidelity,
    measure_knn,
    measure_segmentation_probe,
)
from training.recipe import Recipe
from training.student.build import build_student
from training.teachers.base import Teacher
from training.teachers.registry import build_teachers


@dataclass(frozen=True)
class Setting:
    """What all seeds share.

    Attributes:
        recipe: Of every run; only its seed differs.
        data: The held-out images.
        teachers: By name.
        references: The teachers' features of `data.unlabeled`.
    """

    recipe: Recipe
    data: EvaluationData
    teachers: Mapping[str, Teacher]
    references: Mapping[str, Features]

    @classmethod
    def load(cls, recipe: Recipe) -> Setting:
        """Fetch and load everything that is not trained.

        Raises:
            PackageError: If packages cannot be fetched.
            ValueError: If the recipe does not fit them.
        """
        teachers = build_teachers(recipe.teachers)
        data = EvaluationData.load(recipe.data.source, min(build_student(recipe, teachers).preferred_resolution))
        references = {name: data.extract(teacher, data.unlabeled, name) for name, teacher in teachers.items()}
        return cls(recipe, data, teachers, references)

    @property
    def patch_size(self) -> int:
        """Side of the student's patches in pixels."""
        return self.untrained_student(0).patch_size

    def untrained_student(self, seed: int) -> RadioModel:
        """Return the student that a run with this seed starts from."""
        return build_student(dataclasses.replace(self.recipe, seed=seed), self.teachers).eval()


def measure_backbone(
    setting: Setting, name: str, extractor: FeatureExtractor, seed: int | None = None
) -> list[Measurement]:
    """Measure what can be read from a model's own summary and features."""
    measurements = measure_knn(name, extractor, setting.data, seed)
    return measurements + measure_segmentation_probe(name, extractor, setting.data, seed)


def measure_student(setting: Setting, model: RadioModel, suffix: str, seed: int) -> list[Measurement]:
    """Measure a student's backbone and the fidelity of its adaptors; `suffix` ends the rows' names."""
    measurements = measure_backbone(setting, f"{STUDENT}{suffix}", backbone_extractor(model), seed)
    for name, reference in setting.references.items():
        adaptor = adaptor_extractor(model, name)
        row = f"adaptor {name}{suffix}"
        measurements += measure_adaptor_fidelity(row, adaptor, reference, setting.data, seed)
    return measurements
