"""Classification-gated F1 (cgF1) of the objects that a phrase names in an image, as SA-Co measures it.

References:
    SAM 3, https://arxiv.org/abs/2511.16719, and its code, https://github.com/facebookresearch/sam3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))
"""Least IoU of a match; the score is the mean over these, as in COCO."""
NUM_SUMS = 3 * len(THRESHOLDS) + 4
_LEAST, _LEAST_IMAGE = 1e-4, 1e-6
"""Added to denominators, as in SAM 3's code."""


def concept_counts(predicted: Sequence[Any], annotations: Sequence[Sequence[Any]]) -> Tensor:
    """Return counts of one phrase in one image by the annotator whose masks the predicted ones fit best, `(34,)`.

    Found, false and missed masks at each threshold, and whether the phrase is a true positive, true negative, false
    positive or false negative. False masks count where the annotator has any.

    Args:
        predicted: Masks as COCO's run lengths, dictionaries `size` and `counts`.
        annotations: Those of each annotator.
    """
    found = [_counts(predicted, masks) for masks in annotations]
    scores = torch.stack([_score(each, len(predicted)) for each in found])
    return found[int(scores.argmax())]  # the first of equal ones


def _counts(predicted: Sequence[Any], true: Sequence[Any]) -> Tensor:
    from pycocotools import mask as coco_mask
    from scipy.optimize import linear_sum_assignment

    right = torch.zeros(len(THRESHOLDS), dtype=torch.float64)
    if predicted and true:
        overlaps = np.asarray(coco_mask.iou(list(predicted), list(true), [0] * len(true)))
        matched = torch.from_numpy(overlaps[linear_sum_assignment(overlaps, maximize=True)])
        right = (matched >= THRESHOLDS[:, None]).sum(1).double()
    false = len(predicted) - right if true else torch.zeros_like(right)
    is_there, is_said = bool(true), bool(predicted)
    of_image = [is_there and is_said, not is_there and not is_said, is_said and not is_there, is_there and not is_said]
    return torch.cat([right, false, len(true) - right, torch.tensor(of_image, dtype=torch.float64)])


def _score(counts: Tensor, num_predicted: int) -> Tensor:
    """Return the mean F1 of one phrase; 1 where nothing is there and nothing was predicted."""
    right, _, missed = counts[:-4].unflatten(0, (3, -1))
    precision, recall = right / (num_predicted + _LEAST), right / (right + missed + _LEAST)
    return torch.maximum((2 * precision * recall / (precision + recall + _LEAST)).mean(), counts[-3])


def positive_f1(sums: Tensor) -> Tensor:
    """Return the micro F1 over phrases that are there, the mean over thresholds, `(...)`, of sums `(..., 34)`."""
    right, false, missed = sums[..., :-4].unflatten(-1, (3, -1)).unbind(-2)
    precision, recall = right / (right + false + _LEAST), right / (right + missed + _LEAST)
    return (2 * precision * recall / (precision + recall + _LEAST)).mean(-1)


def image_correlation(sums: Tensor) -> Tensor:
    """Return Matthews' correlation of phrases that are there and phrases that were found, `(...)` (IL_MCC)."""
    both, neither, said, missed = sums[..., -4:].unbind(-1)
    spread = ((both + said) * (both + missed) * (neither + said) * (neither + missed)).sqrt()
    return (both * neither - said * missed) / (spread + _LEAST_IMAGE)


def concept_f1(sums: Tensor) -> Tensor:
    """Return cgF1, the product of `positive_f1` and `image_correlation`, `(...)`, of sums `(..., 34)`."""
    return positive_f1(sums) * image_correlation(sums)
