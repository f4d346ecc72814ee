"""Students of one recipe, measured on the same images and against the same teachers, whatever their seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_cards.results import STUDENT, Measurement
from modeling_radio import RadioModel
from training.evaluation.data.demo import DemoData
from training.evaluation.extractors import FeatureExtractor, Features, adaptor_extractor, backbone_extractor
from training.evaluation.tasks import measure_adaptor_fidelity, measure_knn, measure_segmentation_probe
from training.recipe import Recipe
from training.student.build import build_student, student_patch_size
from training.teachers.base import Teacher
from training.teachers.registry import build_teachers


@dataclass(frozen=True)
class StudentEvaluation:
    """What all seeds share, fetched and computed once.

    Attributes:
        recipe: Of every run; only its seed differs.
        data: The held-out images.
        teachers: By name.
        references: The teachers' features of `data.unlabeled`, by name.
    """

    recipe: Recipe
    data: DemoData
    teachers: Mapping[str, Teacher]
    references: Mapping[str, Features]

    @classmethod
    def load(cls, recipe: Recipe) -> StudentEvaluation:
        """Fetch and load everything that is not trained.

        Raises:
            PackageError: If packages cannot be fetched.
            ValueError: If the recipe does not fit them.
        """
        teachers = build_teachers(recipe.teachers, student_patch_size(recipe))
        data = DemoData.load(recipe.data.source, min(build_student(recipe, teachers).preferred_resolution))
        references = {name: data.extract(teacher.answer, data.unlabeled, name) for name, teacher in teachers.items()}
        return cls(recipe, data, teachers, references)

    @property
    def patch_size(self) -> int:
        """Side of the student's patches in pixels."""
        return self.untrained_student(0).patch_size

    def untrained_student(self, seed: int) -> RadioModel:
        """Return the student that a run with this seed starts from."""
        return build_student(self.recipe.replace(seed=seed), self.teachers).eval()

    def measure_backbone(self, name: str, extractor: FeatureExtractor, seed: int | None = None) -> list[Measurement]:
        """Measure what can be read from a model's own summary and features; `name` is the row in the results."""
        measurements = measure_knn(name, extractor, self.data, seed)
        return measurements + measure_segmentation_probe(name, extractor, self.data, seed)

    def measure_student(self, model: RadioModel, suffix: str, seed: int) -> list[Measurement]:
        """Measure a student's backbone and the fidelity of its adaptors; `suffix` ends the rows' names."""
        measurements = self.measure_backbone(f"{STUDENT}{suffix}", backbone_extractor(model), seed)
        for teacher in self.references:
            measurements += self.measure_fidelity(f"adaptor {teacher}{suffix}", model, teacher, seed)
        return measurements

    def measure_fidelity(self, name: str, model: RadioModel, teacher: str, seed: int) -> list[Measurement]:
        """Measure how closely a student's adaptor reproduces one teacher; `name` is the row in the results."""
        adaptor = adaptor_extractor(model, teacher)
        return measure_adaptor_fidelity(name, adaptor, self.references[teacher], self.data, seed)
