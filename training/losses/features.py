"""Losses between dense features: pure functions of tensors, in float32, one number for each image.

What one image gives depends on no other, so that a batch, its accumulated parts and its shares on several ranks give
the same gradient, whichever of `reductions.py` makes one number of all.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


CHANNEL_TEMPERATURE = 4.0
"""Of `channel_kl_feature_loss`."""
NO_SHARE = -1e4
"""Logit of a position that is not valid: its share is 0 in float32, and gradients stay finite. As in TAO."""


def mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error between the student's and the standardized teacher's features.

    Shift-equivariant when both maps come from `align_to_teacher`: only positions that both crops show count.

    Args:
        student: `(batch, C, rows, cols)`, output of this teacher's dense head.
        teacher: Same shape and frame; standardized features.
        valid: `(batch, rows, cols)` bool: positions that both the student and the teacher see.

    Returns:
        `(batch,)`: means over channels, then over each image's valid positions; 0 for an image without any.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 1, https://arxiv.org/abs/2601.17237
    """
    return _mean_over_valid(_squared_error(*comparable(student, teacher)), valid)


def dampened_mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return d^2 / 2 for differences d below 1 and 2 sqrt(d) - 1.5 above: outliers hardly pull.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        NVIDIA's TAO toolkit (Apache-2.0), https://github.com/NVIDIA-TAO/tao-pytorch, `multimodal/radio`
    """
    student, teacher = comparable(student, teacher)
    distance = (student - teacher).abs()
    dampened = 2 * distance.clamp(min=1).sqrt() - 1.5
    return _mean_over_valid(torch.where(distance < 1, distance.square() / 2, dampened).mean(1), valid)


def smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return d^2 / 2 for differences d below 1 and d - 0.5 above.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        Fast R-CNN, Eq 3, https://arxiv.org/abs/1504.08083; in AM-RADIO 3.4 it keeps the magnitude.
    """
    student, teacher = comparable(student, teacher)
    return _mean_over_valid(_smooth_l1(student, teacher), valid)


def cosine_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - cosine of each position: directions only, the magnitude stays free.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        One of those compared in PHI-S, table 1, https://arxiv.org/abs/2410.01680
    """
    student, teacher = comparable(student, teacher)
    return _mean_over_valid(_cosine_error(student, teacher), valid)


def cosine_mse_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 squared error.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        "Hyb-MSE" in PHI-S, table 1, https://arxiv.org/abs/2410.01680
    """
    student, teacher = comparable(student, teacher)
    errors = 0.9 * _cosine_error(student, teacher) + 0.1 * _squared_error(student, teacher)
    return _mean_over_valid(errors, valid)


def cosine_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 smooth L1.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        AM-RADIO 3.4, https://arxiv.org/abs/2312.06709; Theia, https://arxiv.org/abs/2407.20179
    """
    student, teacher = comparable(student, teacher)
    errors = 0.9 * _cosine_error(student, teacher) + 0.1 * _smooth_l1(student, teacher)
    return _mean_over_valid(errors, valid)


def cosine_wide_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 times d^2 / 4 for differences d below 2 and d - 1 above.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        "balanced" in NVIDIA's TAO toolkit (Apache-2.0): the loss of AM-RADIO 3.4, bent at 2 instead of 1.
    """
    student, teacher = comparable(student, teacher)
    errors = 0.9 * _cosine_error(student, teacher) + 0.1 * _smooth_l1(student, teacher, bend=2.0)
    return _mean_over_valid(errors, valid)


def even_cosine_smooth_l1_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 0.5 (1 - cosine) + 0.5 smooth L1.

    Arguments, result and errors as `mse_feature_loss`.

    References:
        UNIC, https://arxiv.org/abs/2408.05088
    """
    student, teacher = comparable(student, teacher)
    errors = 0.5 * _cosine_error(student, teacher) + 0.5 * _smooth_l1(student, teacher)
    return _mean_over_valid(errors, valid)


def gram_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines between all pairs of an image's valid positions.

    How positions resemble each other, not what they are: any rotation of the student's features gives the same loss,
    so that a head trained with it alone does not answer in its teacher's space. Takes memory for the square of the
    number of positions. Arguments, result and errors as `mse_feature_loss`.

    References:
        DINOv3, 4.2 (Gram anchoring, there a sum), https://arxiv.org/abs/2508.10104
    """
    student, teacher = comparable(student, teacher)
    ours, theirs = _cosines(student, valid), _cosines(teacher, valid)
    num_pairs = valid.sum((1, 2)).square().clamp(min=1)
    return (ours - theirs).square().sum((1, 2)) / num_pairs


def channel_kl_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return how far each channel's distribution over an image's valid positions is from the teacher's.

    The Kullback-Leibler divergence of softmaxes over positions at a temperature of 4, times its square, mean over
    channels: where in the image a channel is large, not how large. A constant added to a channel changes nothing, so
    that a head trained with it alone does not answer in its teacher's space. Arguments, result and errors as
    `mse_feature_loss`.

    References:
        Channel-wise knowledge distillation for dense prediction, https://arxiv.org/abs/2011.13256; "channel_kl" in
        NVIDIA's TAO toolkit (Apache-2.0), whose temperature this is.
    """
    student, teacher = comparable(student, teacher)
    ours, theirs = _log_shares(student / CHANNEL_TEMPERATURE, valid), _log_shares(teacher / CHANNEL_TEMPERATURE, valid)
    divergence = torch.where(valid.unsqueeze(1), theirs.exp() * (theirs - ours), 0.0)
    return CHANNEL_TEMPERATURE**2 * divergence.sum((2, 3)).mean(1)


def focal_frequency_feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the squared error of the maps' Fourier transforms, each frequency weighted by its own error.

    Of each channel the frequency with the largest error counts fully, others in proportion to theirs: so fine detail,
    which has little energy, is not left to the end. Without these weights it would be `mse_feature_loss` (Parseval), as
    "fft_mse" of NVIDIA's TAO toolkit is. Positions that are not valid have no error. Arguments, result and errors as
    `mse_feature_loss`.

    References:
        Focal frequency loss, with alpha = 1, https://arxiv.org/abs/2012.12821
    """
    student, teacher = comparable(student, teacher)
    difference = torch.where(valid.unsqueeze(1), student - teacher, 0.0)
    energy = torch.view_as_real(torch.fft.fft2(difference, norm="ortho")).square().sum(-1)
    sizes = energy.detach().sqrt()
    weights = sizes / sizes.amax((2, 3), keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    return (weights * energy).sum((2, 3)).mean(1) / valid.sum((1, 2)).clamp(min=1)


FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mse": mse_feature_loss,
    "dampened_mse": dampened_mse_feature_loss,
    "smooth_l1": smooth_l1_feature_loss,
    "cosine": cosine_feature_loss,
    "cosine_mse": cosine_mse_feature_loss,
    "cosine_smooth_l1": cosine_smooth_l1_feature_loss,
    "cosine_wide_smooth_l1": cosine_wide_smooth_l1_feature_loss,
    "even_cosine_smooth_l1": even_cosine_smooth_l1_feature_loss,
    "gram": gram_feature_loss,
    "channel_kl": channel_kl_feature_loss,
    "focal_frequency": focal_frequency_feature_loss,
}


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return each position's mean over channels, in one pass, along numbers that lie side by side in memory."""
    return F.mse_loss(student.movedim(1, -1), teacher.movedim(1, -1), reduction="none").mean(-1)


def _cosine_error(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def _smooth_l1(student: Tensor, teacher: Tensor, bend: float = 1.0) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=bend).mean(1)


def _cosines(features: Tensor, valid: Tensor) -> Tensor:
    """Return the cosines `(batch, tokens, tokens)` between positions; 0 where one of the two is not valid."""
    tokens = torch.where(valid.unsqueeze(1), features, 0.0).flatten(2)
    tokens = F.normalize(tokens, dim=1)
    return tokens.transpose(1, 2) @ tokens


def _log_shares(features: Tensor, valid: Tensor) -> Tensor:
    """Return the log of each channel's softmax over an image's valid positions, in the shape of the maps."""
    logits = torch.where(valid.unsqueeze(1), features, NO_SHARE)
    return F.log_softmax(logits.flatten(2), dim=2).view_as(features)


def _mean_over_valid(errors: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over each image's valid positions; 0 for an image without any."""
    errors = torch.where(valid, errors, 0.0)
    return errors.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32.

    Raises:
        ValueError: If the two cannot be compared number by number.
    """
    check_same_shape(student, teacher)
    return student.float(), teacher.float()


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise a `ValueError` where two maps or summaries cannot be compared number by number."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have the same shape: "
            "resample to one grid first."
        )
