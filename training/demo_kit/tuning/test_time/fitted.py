"""What temperatures and thresholds are worth on images that they were not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from training.demo_kit.tuning.test_time.results import FittedScore
from training.finetuning.examination.calibration import best_thresholds, calibration_error, fit_temperature
from training.finetuning.examination.evidence import Evidence, Ranking, join
from training.finetuning.tasks.classification import THRESHOLD


CALIBRATION, F1 = "calibration error", "f1"


class Fit(NamedTuple):
    """What was fitted to some images scores on others.

    Attributes:
        before: The score without it.
        held_out: With it.
        same: With it, on the images that it was fitted to.
    """

    before: float
    held_out: float
    same: float


def split_in_halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return two random halves of that many images; the first has the one more of an odd number."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


def measure_fitted(subject: str, seed: int, images: Sequence[Evidence], *, has_thresholds: bool) -> list[FittedScore]:
    """Fit to one half of some images and measure on the other, each in either role.

    Args:
        subject: Names the images.
        seed: Of the halves.
        images: What a model says of each.
        has_thresholds: Whether an answer counts from a certainty on.
    """
    ways: dict[str, Callable[[Evidence, Evidence], Fit]] = {}
    if images[0].logits is not None:
        ways[CALIBRATION] = fit_calibration
    if has_thresholds:
        ways[F1] = fit_thresholds
    first, second = (join([images[index] for index in half]) for half in split_in_halves(len(images), seed))
    scores = []
    for measure, fit in ways.items():
        both = fit(first, second), fit(second, first)
        scores.append(FittedScore(subject, measure, seed, *(mean(values) for values in zip(*both, strict=True))))
    return scores


def fit_calibration(fitted: Evidence, held_out: Evidence) -> Fit:
    """Return expected calibration errors before and after a temperature."""
    logits, labels = _logits(fitted)
    others, other_labels = _logits(held_out)
    temperature = fit_temperature(logits, labels)
    return Fit(
        calibration_error(others, other_labels),
        calibration_error(others / temperature, other_labels),
        calibration_error(logits / temperature, labels),
    )


def _logits(evidence: Evidence) -> tuple[Tensor, Tensor]:
    assert evidence.logits is not None
    assert evidence.labels is not None
    return evidence.logits.double(), evidence.labels


def fit_thresholds(fitted: Evidence, held_out: Evidence) -> Fit:
    """Return the mean F1 of classes with one usual threshold for all, and with one of its own for each."""
    assert fitted.ranking is not None
    assert held_out.ranking is not None
    thresholds, _ = best_thresholds(fitted.ranking)
    usual = [THRESHOLD] * len(thresholds)
    return Fit(
        mean_f1(held_out.ranking, usual), mean_f1(held_out.ranking, thresholds), mean_f1(fitted.ranking, thresholds)
    )


def mean_f1(ranking: Ranking, thresholds: Sequence[float]) -> float:
    """Return the mean F1 of the classes that are there to be found, of answers above the threshold of their class."""
    values = []
    for number in ranking.occurring():
        scores, hits = ranking.of_class(number)
        count = int((scores > thresholds[number]).sum())
        found = int(hits[count - 1]) if count else 0
        values.append(2 * found / (count + int(ranking.num_truths[number])))
    return mean(values)
