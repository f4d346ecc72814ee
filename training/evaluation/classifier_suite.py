"""Tuned classifiers in the `EvaluationSuite` of the package `evaluate`, whose answers become our measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import first_few
from model_cards.results import STUDENT, Measurement


if TYPE_CHECKING:
    from datasets import Dataset
    from evaluate import EvaluationSuite


METRIC = Path(__file__).parent / "metrics" / "accuracy"
TASK = "image-classification"
_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


def classifier_suite(
    processor: Any,
    label2id: Mapping[str, int],
    sets: Mapping[str, Dataset],
    *,
    columns: tuple[str, str] = ("image", "label"),
    **options: Any,
) -> EvaluationSuite:
    """Return a suite that measures image classifiers of the same classes: `suite.run(model)`.

    Args:
        processor: The model's image processor.
        label2id: Classes that the model tells apart, as its configuration has them.
        sets: Labeled images by name, with a `ClassLabel`.
        columns: Names of the images and of their labels.
        options: Of the evaluator's `compute`, such as `strategy="bootstrap"` for intervals, or a `metric` instead of
            ours.

    Returns:
        The suite. Its answers are dictionaries that JSON knows, with the name of the set as `task_name`.

    Raises:
        ValueError: If a set lacks a column, its labels have no names, or it has none of the model's classes.
    """
    import evaluate
    from evaluate.evaluation_suite import SubTask

    image_column, label_column = columns
    chosen = {
        "metric": evaluate.load(str(METRIC)),
        "feature_extractor": processor,
        "input_column": image_column,
        "label_column": label_column,
        **options,
    }

    class ClassifierSuite(evaluate.EvaluationSuite):
        """A subtask for each set; `evaluate` itself names an answer by its rows, which no JSON holds."""

        def __init__(self) -> None:
            super().__init__(TASK)
            self.suite = [
                SubTask(
                    TASK, rows, args_for_task={**chosen, "label_mapping": _label_mapping(name, rows, label2id, columns)}
                )
                for name, rows in sets.items()
            ]

        def run(  # pyrefly: ignore[bad-override]
            self, model_or_pipeline: Any
        ) -> list[dict[str, Any]]:
            answers = super().run(model_or_pipeline)
            return [
                {**answer, "task_name": name}  # pyrefly: ignore[invalid-argument]
                for name, answer in zip(sets, answers, strict=True)
            ]

    return ClassifierSuite()


def _label_mapping(name: str, rows: Dataset, label2id: Mapping[str, int], columns: tuple[str, str]) -> dict[str, int]:
    """Return the set's index of each class of the model; those that it has not are -1, which is never right."""
    from datasets import ClassLabel

    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"`columns` must be of {name!r}, {rows.column_names}, got {missing}. Name those that hold them."
        )
    feature = rows.features[columns[1]]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"Labels of {name!r} must be a ClassLabel with names, got {feature}. Cast the column.")
    names = feature.names
    known = {label: index for index, label in enumerate(names)}
    if not known.keys() & label2id.keys():
        raise ValueError(
            f"Classes of {name!r} must be among the model's, {first_few(list(label2id), 4)}, got "
            f"{first_few(names, 4)}. Rename them, or give the model that was tuned on them."
        )
    return {label: known.get(label, -1) for label in label2id}


def suite_measurements(answers: Sequence[Mapping[str, Any]], model: str = STUDENT) -> list[Measurement]:
    """Return what a suite's answers say as measurements of `results.json`, value for value.

    Args:
        answers: Of a suite with our metric; bootstrapped ones keep their intervals, where these are defined.
        model: The row in tables.
    """
    return [
        _measurement(answer[metric], Measurement(model, "image_classification", title, answer["task_name"], math.nan))
        for answer in answers
        for metric, title in _METRICS.items()
    ]


def _measurement(answer: float | Mapping[str, Any], measurement: Measurement) -> Measurement:
    """Return a measurement with its value: a number, or what `scipy.stats.bootstrap` makes of it."""
    if not isinstance(answer, Mapping):
        return replace(measurement, value=answer)
    low, high = (float(end) for end in answer["confidence_interval"])
    if not (math.isfinite(low) and math.isfinite(high)):
        return replace(measurement, value=answer["score"])
    return replace(measurement, value=answer["score"], low=low, high=high)
