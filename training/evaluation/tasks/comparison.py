"""How alike the model and its teachers are, whatever their adaptors say."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.seeds import make_generator
from model_cards.results import Measurement
from training.evaluation.features import Wanted
from training.evaluation.metrics.model_similarity import canonical_correlation, linear_fidelity
from training.evaluation.tasks.base import Evaluation


TOKENS_OF_EACH = 64
"""Our choice of patches of each image: enough for stable covariances, few enough for any memory."""


def measure_model_similarity(evaluation: Evaluation) -> list[Measurement]:
    """Measure canonical correlations of patches with each teacher's, and how well either is a linear map of the other.

    Directions and maps are fit to one half of the images and measured on the other.
    """
    if not evaluation.teachers:
        raise ValueError(
            f"`model_similarity` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks."
        )
    measurements = []
    for name in evaluation.teachers:
        train, test = _halves(evaluation, name)
        values = {
            "CCA": canonical_correlation(train, test),
            "teacher from model, R2": linear_fidelity(train, test),
            "model from teacher, R2": linear_fidelity(train[::-1], test[::-1]),
        }
        for metric, value in values.items():
            measurement = evaluation.measurement("model_similarity", metric, value, "images")
            measurements.append(replace(measurement, model=f"{evaluation.model.name} beside {name}"))
    return measurements


def _halves(evaluation: Evaluation, teacher: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return patches of model and teacher at the same places, of the first half of the images and of the second."""
    ours = evaluation.features("images", wanted=Wanted(dense=True))
    theirs = evaluation.reference(teacher, "images")
    pairs = []
    for image in range(len(ours)):
        one, two = ours.map(image), theirs.map(image)
        two = F.interpolate(two[None], one.shape[1:], mode="bilinear", antialias=True)[0]
        generator = make_generator(evaluation.settings.random_seed, "places", image)
        places = torch.randperm(one[0].numel(), generator=generator)[:TOKENS_OF_EACH]
        pairs.append((one.flatten(1).T[places], two.flatten(1).T[places]))
    half = len(pairs) // 2
    if not half:
        raise ValueError("`data` must have two images for model_similarity, got one. Leave the task out.")
    (first, second), (third, fourth) = (
        (torch.cat([one for one, _ in part]), torch.cat([two for _, two in part]))
        for part in (pairs[:half], pairs[half:])
    )
    return (first, second), (third, fourth)
