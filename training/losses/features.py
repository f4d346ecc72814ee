"""Losses between dense features: pure functions of tensors, in float32, one number for each image.

The loss of an image depends on no other image, and all images count alike (C-RADIOv4, Eq 1). So a batch, its
accumulated parts and its shares on several ranks give the same gradient.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.core.imports import find_function


def mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error between the student's and the standardized teacher's features.

    Shift-equivariant if both maps come from `Alignment.apply`: only positions that both crops show count.

    Args:
        student: `(batch, C, rows, cols)`, output of this teacher's dense head.
        teacher: Same shape and frame; standardized features.
        valid: `(batch, rows, cols)` bool: positions that both crops show.

    Returns:
        `(batch,)`: means over channels, then over each image's valid positions; 0 for an image without any.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 1, https://arxiv.org/abs/2601.17237
    """
    student, teacher = comparable(student, teacher)
    # Channels last: the mean over channels then reads numbers that lie side by side in memory.
    errors = F.mse_loss(student.movedim(1, -1), teacher.movedim(1, -1), reduction="none").mean(-1)
    return _mean_over_valid(errors, valid)


def smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return d^2 / 2 for differences d below 1 and d - 0.5 above.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        Fast R-CNN, Eq 3, https://arxiv.org/abs/1504.08083; in AM-RADIO 3.4 it keeps the magnitude.
    """
    return _mean_over_valid(_smooth_l1_error(*comparable(student, teacher)), valid)


def cosine_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - cosine of each position: directions only, the magnitude stays free.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        One of the losses compared in PHI-S, table 1, https://arxiv.org/abs/2410.01680
    """
    return _mean_over_valid(_cosine_error(*comparable(student, teacher)), valid)


def cosine_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 smooth L1.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        AM-RADIO 3.4, https://arxiv.org/abs/2312.06709; Theia, https://arxiv.org/abs/2407.20179
    """
    student, teacher = comparable(student, teacher)
    errors = 0.9 * _cosine_error(student, teacher) + 0.1 * _smooth_l1_error(student, teacher)
    return _mean_over_valid(errors, valid)


FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mse": mse_feature_loss,
    "smooth_l1": smooth_l1_feature_loss,
    "cosine": cosine_feature_loss,
    "cosine_smooth_l1": cosine_smooth_l1_feature_loss,
}


@cache
def feature_loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the loss of a name in `FEATURE_LOSSES`, or of an import path, "my_package.my_module:my_loss".

    Raises:
        ValueError: If it cannot be imported.
    """
    return find_function(name, FEATURE_LOSSES, "loss.features")


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps or summaries in float32.

    Raises:
        ValueError: If their shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have the same shape: "
            "resample to one grid first."
        )
    return student.float(), teacher.float()


def _cosine_error(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def _smooth_l1_error(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none").mean(1)


def _mean_over_valid(errors: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over each image's valid positions; 0 for an image without any."""
    errors = torch.where(valid, errors, 0.0)
    return errors.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
