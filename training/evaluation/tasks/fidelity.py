"""How closely adaptors reproduce their teachers, and how alike model and teachers are, whatever adaptors say."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.seeds import make_generator
from model_cards.results import STUDENT, Measurement
from training.evaluation.data.base import Kind
from training.evaluation.features import Wanted
from training.evaluation.metrics.adaptor_fidelity import fidelity_scores
from training.evaluation.metrics.similarity import canonical_correlation, linear_fidelity
from training.evaluation.models.base import FeatureModel
from training.evaluation.tasks.base import Evaluation


TOKENS_OF_EACH = 64
"""Our choice of patches of each image: enough for stable covariances, few enough for any memory."""


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


def measure_model_similarity(evaluation: Evaluation) -> list[Measurement]:
    """Measure canonical correlations of patches with each teacher's, and how well either is a linear map of the other.

    Directions and maps are fit to one half of the images and measured on the other.
    """
    if not evaluation.teachers:
        raise ValueError(
            f"`model_similarity` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks."
        )
    measurements = []
    for name in evaluation.teachers:
        train, test = _halves(evaluation, name)
        values = {
            "CCA": canonical_correlation(train, test),
            "teacher from model, R2": linear_fidelity(train, test),
            "model from teacher, R2": linear_fidelity(train[::-1], test[::-1]),
        }
        for metric, value in values.items():
            measurement = evaluation.measurement("model_similarity", metric, value, "images")
            measurements.append(replace(measurement, model=f"{evaluation.model.name} beside {name}"))
    return measurements


def _halves(evaluation: Evaluation, teacher: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return patches of model and teacher at the same places, of the first half of the images and of the second."""
    ours = evaluation.features("images", wanted=Wanted(dense=True))
    theirs = evaluation.reference(teacher, "images")
    pairs = []
    for image in range(len(ours)):
        one, two = ours.map(image), theirs.map(image)
        two = F.interpolate(two[None], one.shape[1:], mode="bilinear", antialias=True)[0]
        generator = make_generator(evaluation.settings.random_seed, "places", image)
        places = torch.randperm(one[0].numel(), generator=generator)[:TOKENS_OF_EACH]
        pairs.append((one.flatten(1).T[places], two.flatten(1).T[places]))
    half = len(pairs) // 2
    if not half:
        raise ValueError("`data` must have two images for model_similarity, got one. Leave the task out.")
    (first, second), (third, fourth) = (
        (torch.cat([one for one, _ in part]), torch.cat([two for _, two in part]))
        for part in (pairs[:half], pairs[half:])
    )
    return (first, second), (third, fourth)
