"""Losses between dense features: pure functions of tensors, in float32, averaged over images.

Like all losses of this folder, each is linear in the images of a batch, so that a batch, its accumulated parts and its
shares on several ranks give the same gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error between the student's and the standardized teacher's features.

    Shift-equivariant when both maps come from `align_to_teacher`: only positions that both crops show count.

    Args:
        student: `(batch, C, rows, cols)`, output of this teacher's dense head in the teacher's frame.
        teacher: Same shape; standardized features.
        valid: `(batch, rows, cols)` bool: positions that both the student and the teacher see.

    Returns:
        Scalar: mean over channels, then over each image's valid positions, then over images.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 1, https://arxiv.org/abs/2601.17237
    """
    check_same_shape(student, teacher)
    squared_error = (student.float() - teacher.float()).square().mean(1)
    return _mean_over_valid(squared_error, valid)


def cosine_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 smooth-L1 over valid positions, arguments as `mse_feature_loss` (AM-RADIO 3.4)."""
    check_same_shape(student, teacher)
    student, teacher = student.float(), teacher.float()
    cosine_error = 1 - F.cosine_similarity(student, teacher, dim=1)
    smooth_l1 = F.smooth_l1_loss(student, teacher, reduction="none").mean(1)
    return _mean_over_valid(0.9 * cosine_error + 0.1 * smooth_l1, valid)


FEATURE_LOSSES = {"mse": mse_feature_loss, "cosine_smooth_l1": cosine_smooth_l1_feature_loss}


def _mean_over_valid(errors: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over images of each image's mean over valid positions; an image without any counts as 0."""
    errors = torch.where(valid, errors, 0.0)
    return (errors.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)).mean()


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise a `ValueError` where two maps or summaries cannot be compared number by number."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have the same shape: "
            "resample to one grid first."
        )
