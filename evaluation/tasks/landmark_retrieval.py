"""Task on landmarks: cropped queries find images of the same building, by the protocol of ROxford and RParis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from modeling_radio.evaluation.tasks.base import Evaluation, summary_or_mean
from modeling_radio.metrics.results import Measurement


def measure_landmark_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean average precision of queries by the cosine of summaries, medium and hard.

    Medium: easy and hard images count. Hard: hard images count, and easy ones are left out like junk.

    References:
        Radenovic et al., Revisiting Oxford and Paris, CVPR 2018. https://arxiv.org/abs/1803.11285
    """
    examples = evaluation.examples("landmarks")
    relevance, buildings = examples.relevance, examples.groups
    assert relevance is not None
    assert buildings is not None
    queries, database = (
        F.normalize(summary_or_mean(evaluation.features("landmarks", split)), dim=1) for split in ("test", "gallery")
    )
    orders = (queries @ database.T).argsort(dim=1, descending=True).tolist()
    scores = {
        "mAP, medium": [
            average_precision(order, [*each.easy, *each.hard], each.junk)
            for order, each in zip(orders, relevance, strict=True)
        ],
        "mAP, hard": [
            average_precision(order, each.hard, [*each.junk, *each.easy])
            for order, each in zip(orders, relevance, strict=True)
        ],
    }
    measurements = []
    for metric, values in scores.items():
        found = torch.tensor(values, dtype=torch.float64)
        has_some = ~found.isnan()
        measurements.append(
            evaluation.mean("landmark_retrieval", metric, found[has_some], "landmarks", buildings[has_some])
        )
    return measurements


def average_precision(order: Sequence[int], positives: Sequence[int], junk: Sequence[int]) -> float:
    """Return the area under a query's curve of precision over recall by trapezoids, NaN without positives.

    The usual average precision takes rectangles instead; Oxford's code, and so the published numbers, take trapezoids.

    Args:
        order: Indices of the database, the most similar first.
        positives: Indices that should be found.
        junk: Indices that are left out of the order.
    """
    if not positives:
        return math.nan
    wanted, left_out = set(positives), set(junk)
    ranked = [index for index in order if index not in left_out]
    total = 0.0
    for found, rank in enumerate(rank for rank, index in enumerate(ranked) if index in wanted):
        before = found / rank if rank else 1.0
        total += (before + (found + 1) / (rank + 1)) / 2
    return total / len(wanted)
