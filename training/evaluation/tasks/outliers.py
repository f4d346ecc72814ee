"""Whether features tell what they have not seen: scores of pytorch-ood's detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.seeds import make_generator
from model_cards.results import Measurement
from training.evaluation.metrics.bootstrap import bootstrap_interval
from training.evaluation.tasks.base import Evaluation, summary_or_mean
from training.evaluation.tasks.classification import labels_of, smallest_class


def measure_out_of_distribution(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well the distance from known classes tells images of classes that were held out.

    A seeded share of the classes is known. Detectors see images of these alone, and then score images of all: of the
    test split, or where there is none of the sources of which they have seen no image: half of those of known images
    are seen.
    """
    from pytorch_ood.detector import KNN, Mahalanobis

    vectors, labels, seen, tested = _divided(evaluation)
    test = evaluation.part("labels").test
    groups = None if test.groups is None else test.groups[tested - (len(labels) - len(test))]  # a train split is first
    known = labels[seen]
    k = min(evaluation.settings.neighbors, smallest_class(known))
    detectors = {"kNN distance": KNN(None, k=k), "Mahalanobis": Mahalanobis(None)}
    is_unknown = ~torch.isin(labels[tested], known.unique())
    if not is_unknown.any() or is_unknown.all():
        raise ValueError("`held_out_classes` must leave known and unknown test images, got only one kind of them.")
    numbered = torch.unique(known, return_inverse=True)[1]
    measurements = []
    for name, detector in detectors.items():
        detector.fit_features(vectors[seen], numbered)
        scores = detector.predict_features(vectors[tested]).cpu()
        measurements.append(_auroc(evaluation, name, scores, is_unknown, groups))
    return measurements


def _auroc(evaluation: Evaluation, name: str, scores: Tensor, is_unknown: Tensor, groups: Tensor | None) -> Measurement:
    def statistic(weights: Tensor) -> Tensor:
        return weighted_auroc(scores, is_unknown, weights)

    settings = evaluation.settings
    interval = bootstrap_interval(
        statistic, len(scores), groups=groups, num_resamples=settings.resamples, seed=settings.random_seed
    )
    value = statistic(torch.ones(1, len(scores), dtype=torch.float64)).item()
    return evaluation.measurement("out_of_distribution", f"AUROC, {name}", value, "labels", interval)


def _divided(evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all vectors and labels, and the rows that detectors are fit to and measured on."""
    part, settings = evaluation.part("labels"), evaluation.settings
    vectors, labels = summary_or_mean(evaluation.features("labels")), labels_of(part.test)
    classes = labels_of(part.gallery).unique()
    generator = make_generator(settings.random_seed, "known classes")
    num_held_out = min(max(1, round(settings.held_out_classes * len(classes))), len(classes) - 1)
    held_out = classes[torch.randperm(len(classes), generator=generator)[:num_held_out]]
    if part.train is not None:
        stored, stored_labels = summary_or_mean(evaluation.features("labels", "gallery")), labels_of(part.train)
        seen = (~torch.isin(stored_labels, held_out)).nonzero().flatten()
        tested = torch.arange(len(labels)) + len(stored_labels)
        return torch.cat([stored, vectors]), torch.cat([stored_labels, labels]), seen, tested
    known = (~torch.isin(labels, held_out)).nonzero().flatten()
    groups = torch.arange(len(labels)) if part.test.groups is None else part.test.groups
    sources = groups[known].unique()
    if len(sources) < 2:
        raise ValueError("`data` must have a train split or known images of several sources, got one source.")
    is_seen = torch.isin(groups, sources[torch.randperm(len(sources), generator=generator)[: len(sources) // 2]])
    return vectors, labels, known[is_seen[known]], (~is_seen).nonzero().flatten()


def weighted_auroc(scores: Tensor, is_positive: Tensor, weights: Tensor) -> Tensor:
    """Return the area under the ROC curve for several weightings of the same images, `(num_weightings,)`.

    The probability that a positive image has a higher score than a negative one; ties count half.

    Args:
        scores: `(num_images,)`.
        is_positive: Which ones should score high, bool `(num_images,)`.
        weights: How often each image counts, `(num_weightings, num_images)`.
    """
    values, places = torch.unique(scores, return_inverse=True)
    shape = (len(weights), len(values))
    index = places.expand(len(weights), -1)
    positive = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * is_positive)
    negative = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * ~is_positive)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
