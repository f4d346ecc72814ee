"""How closely an adaptor reproduces its teacher."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.features import StoredFeatures
from training.evaluation.metrics.similarity import centered_cosine, mean_cosine
from training.evaluation.models.base import Features
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


def fidelity_scores(student: StoredFeatures, teacher: StoredFeatures, adaptor: str) -> dict[str, Tensor]:
    """Return the mean cosines of each image between an adaptor and its teacher, in [-1, 1], `(num_images,)`.

    The `centered` ones first subtract the teacher's mean vector from both sides. Features of a network share
    a large mean, so a model that always answers that mean scores well on the plain cosine and zero there.

    Args:
        student: Answers with those of the adaptor, which live in the teacher's space.
        teacher: The teacher's own. The smaller of two different grids is resampled, as in training.
        adaptor: Its name.

    Returns:
        By name: `summary` and `centered summary`, where both have one, `features` and `centered features`.

    Raises:
        ValueError: If the channels or the numbers of images differ.
    """
    if len(student) != len(teacher):
        raise ValueError(f"`teacher` must have the student's {len(student)} images, got {len(teacher)}.")
    scores = _summary_scores(student.summary(adaptor), teacher.summary())
    mean = teacher.mean_features().mean(0)[:, None, None]
    plain, centered = [], []
    for image in range(len(student)):
        answer, truth = student.map(image, adaptor), teacher.map(image)
        if len(answer) != len(truth):
            raise ValueError(
                f"`adaptor` must have as many channels as its teacher, {len(truth)}, got {len(answer)} of {adaptor!r}."
            )
        maps = align_to_teacher(answer[None], truth[None])
        plain.append(F.cosine_similarity(maps.student[0], maps.teacher[0], dim=0).mean())
        centered.append(F.cosine_similarity(maps.student[0] - mean, maps.teacher[0] - mean, dim=0).mean())
    return {**scores, "features": torch.stack(plain), "centered features": torch.stack(centered)}


def _summary_scores(student: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:
    if student is None or teacher is None:
        return {}
    mean = teacher.mean(0)
    return {
        "summary": F.cosine_similarity(student, teacher, dim=1),
        "centered summary": F.cosine_similarity(student - mean, teacher - mean, dim=1),
    }
