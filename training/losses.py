"""The distillation losses: pure functions of tensors, in float32, averaged over images.

Each is linear in the images of a batch, so that a batch, its accumulated parts and its shares on several
ranks give the same gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.alignment import align_to_teacher


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
    _check_same_shape(student, teacher)
    squared_angle = angle_between(student.float(), teacher.float()).square()
    return squared_angle.mean() / dispersion.to(squared_angle.dtype)


def cosine_summary_loss(student: Tensor, teacher: Tensor, dispersion: Tensor) -> Tensor:
    """Return 1 - cosine between `(batch, C)` summaries (AM-RADIO 3.4); the dispersion is not used."""
    del dispersion
    _check_same_shape(student, teacher)
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error between the student's and the standardised teacher's features.

    Shift-equivariant when both maps come from `align_to_teacher`: only positions that both crops show count.

    Args:
        student: `(batch, C, rows, cols)`, output of this teacher's dense head in the teacher's frame.
        teacher: Same shape; standardised features.
        valid: `(batch, rows, cols)` bool: positions that both the student and the teacher see.

    Returns:
        Scalar: mean over channels, then over each image's valid positions, then over images.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 1, https://arxiv.org/abs/2601.17237
    """
    _check_same_shape(student, teacher)
    squared_error = (student.float() - teacher.float()).square().mean(1)
    return _mean_over_valid(squared_error, valid)


def cosine_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 smooth-L1 over valid positions, arguments as `mse_feature_loss` (AM-RADIO 3.4)."""
    _check_same_shape(student, teacher)
    student, teacher = student.float(), teacher.float()
    cosine_error = 1 - F.cosine_similarity(student, teacher, dim=1)
    smooth_l1 = F.smooth_l1_loss(student, teacher, reduction="none").mean(1)
    return _mean_over_valid(0.9 * cosine_error + 0.1 * smooth_l1, valid)


def mesa_loss(student: Tensor, average: Tensor, shift: Tensor) -> Tensor:
    """Return the mean squared distance of the student's normalised features to its moving average's on another crop.

    Layer norm without learned parameters on both, then compared where both crops show the same. The features are the
    backbone's: it has no final norm, which is what the layer norm is for (our reading; the report does not say).

    Args:
        student: `(batch, C, rows, cols)`, features of the backbone.
        average: Same shape, those of the moving average, without gradients.
        shift: `(batch, 2)` rows and columns in patches: the average's crop minus the student's.

    Returns:
        Scalar, at most 4: mean over channels, each image's overlap, images.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 2, https://arxiv.org/abs/2601.17237; MESA, https://arxiv.org/abs/2205.14083
    """
    _check_same_shape(student, average)
    return mse_feature_loss(*align_to_teacher(_normalize_tokens(student), _normalize_tokens(average), shift))


SUMMARY_LOSSES = {"balanced": balanced_summary_loss, "cosine": cosine_summary_loss}
FEATURE_LOSSES = {"mse": mse_feature_loss, "cosine_smooth_l1": cosine_smooth_l1_feature_loss}


def _normalize_tokens(features: Tensor) -> Tensor:
    """Return `(batch, C, rows, cols)` features with mean 0 and variance 1 over the channels of every token."""
    return F.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def _mean_over_valid(errors: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over images of each image's mean over valid positions; an image without any counts as 0."""
    errors = torch.where(valid, errors, 0.0)
    return (errors.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)).mean()


def _check_same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have the same shape: "
            "resample to one grid first."
        )
