"""Losses between class-token outputs: pure functions, linear in the images of a batch."""

from torch import Tensor
from torch.nn import functional as F

from training.losses.features import check_same_shape


MAX_COSINE = 1 - 1e-6
"""Bound of a cosine before `acos`, whose slope is infinite at 1 (as in NVIDIA's TAO toolkit, Apache-2.0)."""


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors along the last dimension, in [0, pi] rad, clamped away from 0 and pi."""
    return F.cosine_similarity(first, second, dim=-1).clamp(-MAX_COSINE, MAX_COSINE).acos()


def balanced_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return the squared angle to the teacher's summary over that teacher's angular dispersion.

    Args:
        student: `(batch, C)`, output of this teacher's summary head.
        teacher: `(batch, C)`, the teacher's summary; neither needs unit length.
        dispersion: Scalar in rad^2, `SummaryDispersion.value`.

    Returns:
        Scalar; about 1 for a student that always answers the teacher's mean direction.

    Raises:
        ValueError: If the two shapes differ.

    References:
        C-RADIOv4 tech report, Eq 7, https://arxiv.org/abs/2601.17237
    """
    check_same_shape(student, teacher)
    squared_angle = angle_between(student.float(), teacher.float()).square()
    return squared_angle.mean() / dispersion.to(squared_angle.dtype)


def cosine_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return 1 - cosine between `(batch, C)` summaries (AM-RADIO 3.4); the dispersion is not used."""
    del dispersion
    check_same_shape(student, teacher)
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


SUMMARY_LOSSES = {"balanced": balanced_summary_loss, "cosine": cosine_summary_loss}
