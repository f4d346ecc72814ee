"""What is fitted to a validation set after training: the temperature of probabilities, and thresholds of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.finetuning.examination.evidence import Ranking


NUM_BINS = 15  # as in Guo et al.
LARGEST_TEMPERATURE = 100.0  # our choice: beyond, probabilities are all alike
NO_THRESHOLD = 0.5  # of classes that no validation image has


@dataclass(frozen=True)
class Calibration:
    """Fitted to a validation set, and measured on the same.

    Attributes:
        temperature: What logits are divided by; 1 where none is best, as where every answer is right.
        error_before: Expected calibration error without it, in [0, 1].
        error_after: With it.
    """

    temperature: float
    error_before: float
    error_after: float


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit the temperature with which the labels are most probable.

    Args:
        logits: `(num_images, num_classes)`.
        labels: Ids `(num_images,)`; or 0 and 1 for each class, which is then a question of its own.

    References:
        Guo et al., 2017, sections 2 and 4.2. https://arxiv.org/abs/1706.04599
    """
    logits = logits.double()
    temperature = fit_temperature(logits, labels)
    errors = [calibration_error(each, labels) for each in (logits, logits / temperature)]
    return Calibration(temperature, *errors)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of the least cross-entropy, found by bisection of its slope, which rises everywhere.

    It is 1 if the least lies beyond `LARGEST_TEMPERATURE` or its inverse: where every answer is right, the smaller the
    better, and where they have nothing to do with the labels, the larger.
    """
    bound = torch.tensor(LARGEST_TEMPERATURE).log().item()
    low, high = -bound, bound  # of the logarithm of what logits are multiplied by
    if _slope(logits, labels, low) > 0 or _slope(logits, labels, high) <= 0:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _slope(logits, labels, middle) > 0:
            high = middle
        else:
            low = middle
    return float(torch.tensor(-(low + high) / 2).exp())


def _slope(logits: Tensor, labels: Tensor, log_factor: float) -> float:
    """Return the derivative of the cross-entropy by the factor on the logits, in which it is convex."""
    with torch.enable_grad():
        factor = torch.tensor(log_factor, dtype=logits.dtype).exp().requires_grad_()
        scaled = logits * factor
        is_several = labels.ndim > 1
        loss = F.binary_cross_entropy_with_logits(scaled, labels.double()) if is_several else _entropy(scaled, labels)
        (slope,) = torch.autograd.grad(loss, factor)
    return slope.item()


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.long())


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: how far certainty is from the share of right answers, on average."""
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    if labels.ndim > 1:
        return float(binary_calibration_error(logits.sigmoid().flatten(), labels.long().flatten(), n_bins=NUM_BINS))
    shares, num_classes = logits.softmax(dim=-1), logits.shape[1]
    return float(multiclass_calibration_error(shares, labels.long(), num_classes=num_classes, n_bins=NUM_BINS))


def best_thresholds(ranking: Ranking) -> tuple[list[float], list[float]]:
    """Return for each class the score from which on its answers have the best F1, and that F1.

    A threshold lies between two scores. Classes that are not there to be found get `NO_THRESHOLD` and an F1 of 0.
    """
    thresholds, measured = [NO_THRESHOLD] * len(ranking.num_truths), [0.0] * len(ranking.num_truths)
    for number in ranking.occurring():
        scores, hits = ranking.of_class(number)
        if not len(scores):
            continue
        f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + ranking.num_truths[number])
        lower = torch.cat([scores[1:], scores.new_zeros(1)])
        f1 = f1.where(scores > lower, -1.0)  # answers of one score are taken or left together
        f1[-1] = f1[-1].clamp(min=0)
        best = int(f1.argmax())
        thresholds[number], measured[number] = float((scores[best] + lower[best]) / 2), float(f1[best])
    return thresholds, measured
