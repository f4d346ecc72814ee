"""Students of one recipe with different seeds, measured on the same images and against the same teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modeling_radio import RadioModel
from modeling_radio.evaluation.data import EvaluationData, Kind
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.features import StoredFeatures, Wanted
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.settings import PRESETS, DataOptions
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.registry import find_task
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.results import STUDENT, Measurement
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.student.build import build_student, student_patch_size
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.registry import build_teachers


BACKBONE_TASKS = ("knn", "segmentation_probe")


@dataclass(frozen=True)
class StudentEvaluation:
    """Data and teachers of all seeds, fetched and computed once.

    Attributes:
        recipe: Recipe of all runs; only the seed differs.
        data: The held-out images.
        teachers: Teachers by name.
        size_px: Side of the images.
        settings: Settings of the tasks.
        references: Features of the teachers; see `Evaluation`.
    """

    recipe: Recipe
    data: EvaluationData
    teachers: Mapping[str, Teacher]
    size_px: int
    settings: TaskSettings = field(default_factory=lambda: TaskSettings(**PRESETS["demo"]))
    references: dict[tuple[str, Kind, int | None], StoredFeatures] = field(default_factory=dict)

    @classmethod
    def load(cls, recipe: Recipe) -> StudentEvaluation:
        """Fetch and load data and teachers.

        Raises:
            PackageError: If packages cannot be fetched.
            ValueError: If the recipe does not fit them.
        """
        teachers = build_teachers(recipe.teachers, student_patch_size(recipe))
        size_px = min(build_student(recipe, teachers).preferred_resolution)
        return cls(recipe, open_data(recipe.data.source, DataOptions(), size_px=size_px), teachers, size_px)

    @property
    def patch_size(self) -> int:
        """Side of the student's patches in pixels."""
        return self.untrained_student(0).patch_size

    def untrained_student(self, seed: int) -> RadioModel:
        """Return the student at the start of a run with this seed."""
        return build_student(self.recipe.replace(seed=seed), self.teachers).eval()

    def teacher(self, name: str) -> TeacherFeatures:
        """Return a teacher as a row of its own."""
        teacher = self.teachers[name]
        return TeacherFeatures(teacher, patch_size=self.patch_size, size_px=self.size_px, name=f"teacher {name}")

    def of(self, model: FeatureModel, seed: int | None = None) -> Evaluation:
        """Return the evaluation of a model on the shared images, with the shared teachers."""
        return Evaluation(
            model,
            self.data,
            self.settings,
            seed=seed,
            find_teachers=lambda: {name: self.teacher(name) for name in self.teachers},
            references=self.references,
        )

    def student(self, model: RadioModel, suffix: str = "") -> RadioFeatures:
        """Return a student as the row `STUDENT`; `suffix` ends its name."""
        return RadioFeatures(model, name=f"{STUDENT}{suffix}", size_px=self.size_px)

    def measure_backbone(self, evaluation: Evaluation) -> list[Measurement]:
        """Measure a model's own summary and features."""
        return [measurement for name in BACKBONE_TASKS for measurement in find_task(name).measure(evaluation)]

    def measure_student(self, model: RadioModel, suffix: str, seed: int) -> list[Measurement]:
        """Measure a student's backbone and the fidelity of its adaptors; `suffix` ends the rows' names."""
        evaluation = self.of(self.student(model, suffix), seed)
        evaluation.expect("images", Wanted(dense=True, adaptors=frozenset(self.teachers)))
        return self.measure_backbone(evaluation) + find_task("adaptor_fidelity").measure(evaluation)
