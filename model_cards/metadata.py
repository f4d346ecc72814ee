"""A card's metadata: task, license, data sets, metrics, base models and results, in the Hub's identifiers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import write_text
from modeling_radio.core.imports import is_import_path
from modeling_radio.core.tables import one_line
from modeling_radio.metrics.results import STUDENT, Measurement, Results
from modeling_radio.model_cards.licenses import License
from modeling_radio.tasks_radio import FEATURE_EXTRACTION, TASKS, HeadTask, pipeline_of, task_of


TASK_OF_EVALUATION = {
    "knn": "image-classification",
    "logistic_regression": "image-classification",
    "zero_shot": "zero-shot-image-classification",
    "segmentation_probe": "image-segmentation",
    "open_vocabulary": "image-segmentation",
    **{name: task.pipeline for name, task in TASKS.items()},
}
METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "mIoU": "mean_iou",
    "mean_iou": "mean_iou",
    "R2": "r_squared",
}
"""Our metrics by the Hub's identifiers, https://huggingface.co/metrics; others are in the card's tables alone."""
RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""The Hub's relations. A distilled student is a "finetune" of its teachers: by default several would be a "merge". A
converted checkpoint is "quantized", under which the Hub lists copies in another format."""
ABOUT_TRAINING = "training"
"""A word in the role of training data; other data sets are evaluation data."""
HUB_ID = re.compile(r"(?=.{1,96}$)(?!.*(?:--|\.\.))([\w-][\w.-]*/)?[\w-][\w.-]*(?<![-.])", re.ASCII)


def card_data(
    config: RadioConfig,
    title: str,
    license: License | None,
    *,
    tags: Sequence[str],
    base_models: Sequence[str] = (),
    relation: str | None = None,
    results: Results | None = None,
    library: str = "transformers",
) -> ModelCardData:
    """Return the metadata of a model's card.

    Args:
        config: The checkpoint's configuration.
        title: Name of the model.
        license: License of the weights; None leaves it out, and the card is not complete.
        tags: Tags besides those of all RADIO checkpoints.
        base_models: Models that it was made from; those that are not on the Hub are left out.
        relation: Relation to the base models, one of `RELATIONS`.
        results: Measured results.
        library: The Hub's name of the library that opens it.

    Raises:
        ValueError: If the Hub knows no such relation.
    """
    if relation is not None:
        check_choice("relation", relation, RELATIONS)
    results = results or Results([])
    hub_ids = _hub_ids(results)
    tag = pipeline_tag(config)
    found = [_eval_result(each, hub_ids.get(each.dataset), tag) for each in _published(results)]
    bases = [base for base in base_models if HUB_ID.fullmatch(base)]
    learned_from = [data.hub_id for data in results.datasets if data.hub_id and ABOUT_TRAINING in data.role]
    return ModelCardData(
        library_name=library,
        pipeline_tag=tag,
        **({} if license is None else license.metadata()),
        tags=["radio", "vision", *tags, "custom_code"],
        base_model=bases or None,
        base_model_relation=relation if bases else None,
        datasets=list(dict.fromkeys(learned_from)) or None,
        metrics=sorted({result.metric_type for result in found}) or None,
        model_name=(one_line(title) or "RADIO") if found else None,
        eval_results=found or None,
    )


def task_of_folder(config: RadioConfig) -> HeadTask | None:
    """Return the task of a checkpoint; `None` if it has no head."""
    return task_of(config.architectures, vars(config).get("auto_map"))


def auto_class_of(config: RadioConfig) -> str:
    """Return the Auto class that opens a checkpoint as the class that wrote it."""
    task, (name,) = task_of_folder(config), (config.architectures or ["RadioModel"])[:1]
    if task is not None:
        return task.auto_classes[0]
    auto_map = vars(config).get("auto_map") or {}
    return next((each for each, value in auto_map.items() if str(value).rpartition(".")[2] == name), "AutoModel")


def pipeline_tag(config: RadioConfig) -> str:
    """Return the pipeline that the Hub offers for a checkpoint."""
    return pipeline_of(config.architectures, vars(config).get("auto_map"))


def hub_metric(metric: str) -> str | None:
    """Return the Hub's identifier of one of our metrics, such as "accuracy, mean features"; None if it has none."""
    return METRICS.get(metric.partition(",")[0])


def write_eval_results(folder: Path, results: Results) -> None:
    """Write `.eval_results/DATA_SET.yaml` for each data set with an id on the Hub."""
    hub_ids = _hub_ids(results)
    entries: dict[str, list[EvalResultEntry]] = {}
    for measurement in _published(results):
        hub_id = hub_ids.get(measurement.dataset)
        if hub_id is not None:
            entries.setdefault(hub_id, []).append(_entry(measurement, hub_id))
    for old in (folder / EVAL_RESULTS_FOLDER).glob("*.yaml"):
        old.unlink()
    for hub_id, found in entries.items():
        path = folder / EVAL_RESULTS_FOLDER / f"{hub_id.replace('/', '--')}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_text(path, yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False))


def _published(results: Results) -> list[Measurement]:
    """Return the finite measurements of the checkpoint itself whose metric the Hub has."""
    return [
        measurement
        for measurement in results.measurements
        if measurement.model == STUDENT and isfinite(measurement.value) and hub_metric(measurement.metric) is not None
    ]


def _entry(measurement: Measurement, hub_id: str) -> EvalResultEntry:
    seed = "" if measurement.seed is None else f", seed {measurement.seed}"
    notes = f"{measurement.task} {measurement.metric}{seed}"
    return EvalResultEntry(hub_id, one_line(measurement.task), measurement.value, notes=one_line(notes))


def _hub_ids(results: Results) -> dict[str, str]:
    return {data.name: data.hub_id for data in results.datasets if data.hub_id}


def _eval_result(measurement: Measurement, hub_id: str | None, tag: str) -> EvalResult:
    """Return a measurement for the metadata; `tag` is the pipeline of the model, which a task of the user's is for."""
    arguments: dict[str, Any] | None = None if measurement.seed is None else {"seed": measurement.seed}
    metric = hub_metric(measurement.metric)
    assert metric is not None
    dataset = one_line(measurement.dataset) or "unnamed"
    return EvalResult(
        task_type=tag
        if is_import_path(measurement.task)
        else TASK_OF_EVALUATION.get(measurement.task, FEATURE_EXTRACTION),
        dataset_type=hub_id or re.sub(r"[^\w./-]+", "-", dataset),
        dataset_name=dataset,
        metric_type=metric,
        metric_name=one_line(f"{measurement.task} {measurement.metric}"),
        metric_value=round(measurement.value, 4),  # as the tables; no digits of float32
        metric_args=arguments,
    )
