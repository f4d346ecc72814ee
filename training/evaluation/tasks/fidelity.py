"""How closely adaptors reproduce their teachers, at one size and at several."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from model_cards.results import STUDENT, Measurement
from training.evaluation.data.base import Kind
from training.evaluation.features import Wanted
from training.evaluation.metrics.adaptor_fidelity import fidelity_scores
from training.evaluation.models.base import FeatureModel
from training.evaluation.tasks.base import Evaluation


def adaptors(model: FeatureModel) -> Wanted:
    """Return that the maps of all adaptors are wanted."""
    return Wanted(dense=True, adaptors=frozenset(model.adaptor_names))


def measure_adaptor_fidelity(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean cosine of every adaptor with its teacher, as it is and about the teacher's mean."""
    _require_teachers(evaluation, "adaptor_fidelity")
    return [
        measurement
        for name in evaluation.teachers
        for measurement in _measurements(evaluation, "adaptor_fidelity", name, fidelity(evaluation, name, "images"))
    ]


def measure_fidelity_over_sizes(evaluation: Evaluation) -> list[Measurement]:
    """Measure the same at several sizes, where a teacher may change its answers, of photographs' middle squares."""
    _require_teachers(evaluation, "fidelity_over_sizes")
    measurements = []
    for size in evaluation.supported_sizes("switching_sizes_px", evaluation.settings.switching_sizes_px):
        for name in evaluation.teachers:
            scores = fidelity(evaluation, name, "photographs", size)
            named = {f"{size} px, {metric}": values for metric, values in scores.items()}
            measurements += _measurements(evaluation, "fidelity_over_sizes", name, named, "photographs")
    return measurements


def fidelity(
    evaluation: Evaluation, teacher: str, kind: Kind = "images", size_px: int | None = None
) -> dict[str, Tensor]:
    """Return the scores of each test image by metric, `(num_images,)`; see `fidelity_scores`.

    Args:
        evaluation: Of the student.
        teacher: Its name.
        kind: Of the images.
        size_px: Side of their middle squares; None for whole images at the student's own size.
    """
    if size_px is None:
        answers = evaluation.features(kind, wanted=Wanted(dense=True, adaptors=frozenset([teacher])))
    else:
        answers = evaluation.square_features(kind, size_px=size_px, wanted=adaptors(evaluation.model))
    return fidelity_scores(answers, evaluation.reference(teacher, kind, size_px), teacher)


def _measurements(
    evaluation: Evaluation, task: str, teacher: str, scores: dict[str, Tensor], kind: Kind = "images"
) -> list[Measurement]:
    row = f"adaptor {teacher}{evaluation.model.name.removeprefix(STUDENT)}"
    return [replace(evaluation.mean(task, metric, values, kind), model=row) for metric, values in scores.items()]


def _require_teachers(evaluation: Evaluation, task: str) -> None:
    if not evaluation.teachers:
        raise ValueError(f"`{task}` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks.")
