"""Losses between summaries: pure functions of tensors, linear in the images of a batch."""

from collections.abc import Callable
from functools import cache

from torch import Tensor
from torch.nn import functional as F

from modeling_radio.core.imports import find_function
from modeling_radio.training.losses.features import comparable


MAX_COSINE = 1 - 1e-6
"""Bound of a cosine before `acos`, whose slope is infinite at 1 (as in NVIDIA's TAO toolkit, Apache-2.0)."""


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors along the last dimension, in [0, pi] rad, clamped away from 0 and pi."""
    return F.cosine_similarity(first, second, dim=-1).clamp(-MAX_COSINE, MAX_COSINE).acos()


def balanced_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return the squared angle to the teacher's summary, divided by the angular dispersion of that teacher.

    Args:
        student: `(batch, C)`, output of this teacher's summary head.
        teacher: `(batch, C)`, the teacher's summary; neither needs unit length.
        dispersion: Dispersion of this teacher's summaries, scalar in rad^2.

    Returns:
        Scalar; about 1 for a student that always returns the teacher's mean direction.

    Raises:
        ValueError: If the two shapes differ.

    References:
        C-RADIOv4 tech report, Eq 7, https://arxiv.org/abs/2601.17237
    """
    squared_angle = angle_between(*comparable(student, teacher)).square()
    return squared_angle.mean() / dispersion.to(squared_angle.dtype)


def angle_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return the squared angle between `(batch, C)` summaries in rad^2: `balanced_summary_loss` without its divisor.

    A teacher whose summaries spread widely weighs more: C-RADIOv4 2.5 divides by the dispersion to prevent this.
    """
    del dispersion
    return angle_between(*comparable(student, teacher)).square().mean()


def cosine_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return 1 - cosine between `(batch, C)` summaries (AM-RADIO 3.4); the dispersion is not used."""
    del dispersion
    student, teacher = comparable(student, teacher)
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


SUMMARY_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "balanced": balanced_summary_loss,
    "angle": angle_summary_loss,
    "cosine": cosine_summary_loss,
}


@cache
def summary_loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the loss of a name in `SUMMARY_LOSSES`, or of an import path, "my_package.my_module:my_loss".

    Raises:
        ValueError: If it cannot be imported.
    """
    return find_function(name, SUMMARY_LOSSES, "loss.summary")
