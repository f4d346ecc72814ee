"""How closely an adaptor reproduces its teacher."""

from typing import NamedTuple

from torch import Tensor

from training.evaluation.extractors import Features
from training.evaluation.metrics.feature_cosine.cosines import centered_cosine, mean_cosine
from training.losses.alignment import align_to_teacher


class Fidelity(NamedTuple):
    """Mean cosine similarities in [-1, 1] between an adaptor and its teacher.

    The `centered` pair first subtracts the teacher's mean vector from both sides. Features of a network share
    a large mean, so a model that always answers that mean scores well on the plain cosine and zero here.

    Attributes:
        summary: Over images; None if the teacher has no summary.
        features: Over all tokens of all images.
        centered_summary: As `summary`, about the teacher's mean summary.
        centered_features: As `features`, about the teacher's mean feature.
    """

    summary: float | None
    features: float
    centered_summary: float | None
    centered_features: float


def adaptor_fidelity(adaptor: Features, teacher: Features) -> Fidelity:
    """Compare an adaptor's output with its teacher's on the same images.

    Args:
        adaptor: The student's answer in the teacher's space.
        teacher: The teacher's own features. The smaller of two different grids is resampled, as in training.

    Returns:
        Mean cosine similarities of summaries and of dense tokens.

    Raises:
        ValueError: If the channels or the numbers of images differ.
    """
    if adaptor.features.shape[:2] != teacher.features.shape[:2]:
        shapes = f"{tuple(adaptor.features.shape)} beside {tuple(teacher.features.shape)}"
        raise ValueError(f"`adaptor` must have as many images and channels as `teacher`, got features {shapes}.")
    maps = align_to_teacher(adaptor.features, teacher.features)
    student_tokens, teacher_tokens = _tokens(maps.student), _tokens(maps.teacher)
    summary = centered_summary = None
    if adaptor.summary is not None and teacher.summary is not None:
        summary = mean_cosine(adaptor.summary, teacher.summary)
        centered_summary = centered_cosine(adaptor.summary, teacher.summary)
    return Fidelity(
        summary=summary,
        features=mean_cosine(student_tokens, teacher_tokens),
        centered_summary=centered_summary,
        centered_features=centered_cosine(student_tokens, teacher_tokens),
    )


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2).flatten(0, 1)  # (batch, dim, rows, cols) -> (tokens, dim)
