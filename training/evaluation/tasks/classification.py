"""Classes from frozen features: kNN, and a logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_cards.results import Measurement
from training.evaluation.data.base import Examples
from training.evaluation.features import StoredFeatures
from training.evaluation.metrics.knn import knn_predictions, num_comparable
from training.evaluation.tasks.base import Evaluation


NUM_FOLDS = 5
"""Of the logistic regression where there is no train split; our choice, scikit-learn's default."""
MAX_ITERATIONS = 2000
"""Our choice: the solver stops long before on sets of some thousand images."""


def labels_of(examples: Examples) -> Tensor:
    """Return the labels of examples that have them."""
    assert examples.labels is not None  # the part's kind says so
    return examples.labels


def vectors(features: StoredFeatures) -> dict[str, Tensor]:
    """Return what classes are read from, by what its metric adds: the summary, and the mean of the features."""
    summary = features.summary()
    means = {", mean features": features.mean_features()}
    return means if summary is None else {"": summary, **means}


def measure_knn(evaluation: Evaluation) -> list[Measurement]:
    """Measure weighted kNN accuracy from the summary, and from the dense features' mean for comparison."""
    part = evaluation.part("labels")
    is_alone = part.train is None
    queries = vectors(evaluation.features("labels"))
    gallery = queries if is_alone else vectors(evaluation.features("labels", "gallery"))
    measurements = []
    for suffix, query in queries.items():
        scores = answers_of_neighbors(evaluation, query, gallery[suffix]) == labels_of(part.test)
        measurements.append(evaluation.mean("knn", f"accuracy{suffix}", scores, "labels"))
    return measurements


def answers_of_neighbors(evaluation: Evaluation, queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the classes by kNN, `(num_queries,)`; without a train split images of one source do not vote for another.

    Args:
        evaluation: Whose labels and settings.
        queries: Vectors of the test images.
        gallery: Those of the gallery.

    Raises:
        ValueError: If there is nothing to compare with.
    """
    part, settings = evaluation.part("labels"), evaluation.settings
    options = {"leave_one_out": part.train is None, "groups": part.test.groups}
    most = num_comparable(len(gallery), **options)
    if not most:
        raise ValueError("`data` must have a train split or images of several sources for kNN, got one source.")
    k, temperature = min(settings.neighbors, most), settings.temperature
    return knn_predictions(queries, gallery, labels_of(part.gallery), k=k, temperature=temperature, **options)


def smallest_class(labels: Tensor) -> int:
    """Return how many images the smallest class has that occurs at all."""
    counts = labels.bincount()
    return int(counts[counts > 0].min())


def measure_logistic_regression(evaluation: Evaluation) -> list[Measurement]:
    """Measure the accuracy of scikit-learn's logistic regression on standardized summaries, and on mean features.

    Without a train split each image is predicted by a regression that has not seen it, of `NUM_FOLDS` folds in which
    images of one source stay together.
    """
    part = evaluation.part("labels")
    queries = vectors(evaluation.features("labels"))
    truth = labels_of(part.test).numpy()
    measurements = []
    for suffix, query in queries.items():
        regression = build_regression(evaluation.settings.logistic_c)
        if part.train is None:
            predictions = _predict_by_folds(
                regression, query.numpy(), truth, part.test.groups, evaluation.settings.random_seed
            )
        else:
            stored = vectors(evaluation.features("labels", "gallery"))[suffix]
            regression.fit(stored.numpy(), labels_of(part.train).numpy())
            predictions = regression.predict(query.numpy())
        scores = torch.from_numpy(predictions == truth)
        measurements.append(evaluation.mean("logistic_regression", f"accuracy{suffix}", scores, "labels"))
    return measurements


def build_regression(inverse_strength: float) -> Any:
    """Return scikit-learn's regression after a standardization.

    Args:
        inverse_strength: `C` of the regression.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_strength, max_iter=MAX_ITERATIONS))


def _predict_by_folds(
    regression: Any, features: np.ndarray, labels: np.ndarray, groups: Tensor | None, seed: int
) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

    folds = max(2, min(NUM_FOLDS, smallest_class(torch.from_numpy(labels))))
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = splitter(folds, shuffle=True, random_state=seed)
    return cross_val_predict(regression, features, labels, groups=None if groups is None else groups.numpy(), cv=split)
