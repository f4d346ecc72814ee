"""Losses between class-token outputs: pure functions, linear in the images of a batch."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from training.losses.features import comparable


class Spread(Protocol):
    """How a teacher's summaries spread over the sphere; `training.targets.dispersion.SummaryDispersion` is one."""

    @property
    def value(self) -> Tensor:
        """Mean squared angle to the mean direction, scalar in rad^2."""
        ...

    @property
    def direction(self) -> Tensor:
        """The mean direction, `(C,)` of length 1."""
        ...


MAX_COSINE = 1 - 1e-6
"""Bound of a cosine before `acos`, whose slope is infinite at 1 (as in NVIDIA's TAO toolkit, Apache-2.0)."""


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors along the last dimension, in [0, pi] rad, clamped away from 0 and pi."""
    return F.cosine_similarity(first, second, dim=-1).clamp(-MAX_COSINE, MAX_COSINE).acos()


def balanced_summary_loss(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """Return the squared angle to the teacher's summary over that teacher's angular dispersion.

    Args:
        student: `(batch, C)`, output of this teacher's summary head.
        teacher: `(batch, C)`, the teacher's summary; neither needs unit length.
        spread: Of this teacher's summaries.

    Returns:
        Scalar; about 1 for a student that always answers the teacher's mean direction.

    Raises:
        ValueError: If the two shapes differ.

    References:
        C-RADIOv4 tech report, Eq 7, https://arxiv.org/abs/2601.17237
    """
    squared_angle = angle_between(*comparable(student, teacher)).square()
    return squared_angle.mean() / spread.value.to(squared_angle.dtype)


def angle_summary_loss(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """Return the squared angle between `(batch, C)` summaries in rad^2: `balanced_summary_loss` without its balance.

    A teacher whose summaries spread widely weighs more: what C-RADIOv4 2.5 divides by the dispersion for.
    """
    del spread
    return angle_between(*comparable(student, teacher)).square().mean()


def cosine_summary_loss(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """Return 1 - cosine between `(batch, C)` summaries (AM-RADIO 3.4); the spread is not used."""
    del spread
    student, teacher = comparable(student, teacher)
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def tangent_sphere_summary_loss(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """Return the squared distance of `(batch, C)` summaries in the plane that touches the sphere at the mean direction.

    Both are mapped there so that angles to the mean direction become lengths (the sphere's logarithm), and the squared
    distance is divided by its mean for a student that always answers the mean direction. Near that direction it is
    `balanced_summary_loss`; far from it turns about the mean direction weigh more, by the angle over its sine.

    References:
        "tangent_sphere" in NVIDIA's TAO toolkit (Apache-2.0), which standardizes the plane by PHI-S. Its rotation
        changes no distance, and its one scale is our dispersion but for the mean of the plane, about zero.
    """
    student, teacher = comparable(student, teacher)
    direction = spread.direction.to(student.dtype)
    distance = tangent_at(direction, student) - tangent_at(direction, teacher)
    return distance.square().sum(-1).mean() / spread.value.to(distance.dtype)


def softmax_kl_summary_loss(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """Return the Kullback-Leibler divergence of softmaxes over the channels of `(batch, C)` summaries.

    For summaries that are logits; of others it sees little but the largest channels. Unlike the other losses it depends
    on their length. The spread is not used.

    References:
        Hinton et al., https://arxiv.org/abs/1503.02531, at temperature 1; "CE" in NVIDIA's TAO toolkit (Apache-2.0),
        less the teacher's entropy, which moves no weight.
    """
    del spread
    student, teacher = comparable(student, teacher)
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def tangent_at(direction: Tensor, vectors: Tensor) -> Tensor:
    """Return the sphere's logarithm of `(batch, C)` vectors at a direction `(C,)` of length 1: as long as the angle."""
    unit = F.normalize(vectors, dim=-1)
    cosine = (unit @ direction).clamp(-MAX_COSINE, MAX_COSINE).unsqueeze(-1)
    angle = cosine.acos()
    return angle / angle.sin() * (unit - cosine * direction)


SUMMARY_LOSSES: dict[str, Callable[[Tensor, Tensor, Spread], Tensor]] = {
    "balanced": balanced_summary_loss,
    "angle": angle_summary_loss,
    "cosine": cosine_summary_loss,
    "tangent_sphere": tangent_sphere_summary_loss,
    "softmax_kl": softmax_kl_summary_loss,
}
