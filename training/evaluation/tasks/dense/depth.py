"""Depth from frozen dense features."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.machine.timing import ProgressBar
from model_cards.results import Measurement
from training.evaluation.metrics.dense_probe import log_depth_loss
from training.evaluation.metrics.depth_errors.errors import depth_errors, depth_sums
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.dense.segmentation import fit_probe, folds, probed, resized_to


def measure_depth_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure the errors of a linear probe of the logarithm of depth; without a train split as of segmentation."""
    depth = evaluation.part("depth").test.depth
    assert depth is not None  # the part's kind says so
    sums: dict[int, Tensor] = {}
    for learn_from, measured in folds(evaluation, "depth"):
        probe = fit_probe(evaluation, "depth", learn_from, 1, log_depth_loss)
        for image in ProgressBar(measured, desc="depth", leave=False, disable=None):
            true = depth[image]
            answer = resized_to(probed(evaluation, "depth", probe, image), true)
            sums[image] = depth_sums(answer[0].exp(), true)
    stacked = torch.stack([sums[image] for image in sorted(sums)])
    return [
        evaluation.of_sums("depth_probe", metric, stacked, lambda each, name=metric: depth_errors(each)[name], "depth")
        for metric in ("abs_rel", "rmse", "delta1")
    ]
