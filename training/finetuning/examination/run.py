"""Examines a tuned model on its validation images: pictures into a folder, numbers for results and configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device, tqdm
from torch import nn
from torch.utils.data import DataLoader

from foundation.files import write_file
from training.finetuning.examination.calibration import best_thresholds, calibrate
from training.finetuning.examination.evidence import Evidence, join
from training.finetuning.examination.pictures import describe_worst, draw_confusion, draw_precision_recall
from training.finetuning.pictures import NUM_PICTURED, draw_predictions, predict_examples
from training.finetuning.tasks.base import Batch, FinetuningTask
from training.finetuning.tasks.examples import Examples


CONFUSION, CURVES, WORST = "confusion.png", "precision_recall.png", "worst.png"
MIN_IMAGES = 2  # to fit anything


@dataclass(frozen=True)
class Examined:
    """What was found.

    Attributes:
        results: For `results.json`.
        config_fields: Fields of the model's configuration that post-processing reads.
    """

    results: dict[str, Any] = field(default_factory=dict)
    config_fields: dict[str, Any] = field(default_factory=dict)


def gather_evidence(task: FinetuningTask, model: nn.Module, examples: Examples) -> Evidence:
    """Run a model on all images of a split, on every rank: a sharded model gathers its weights as it runs."""
    settings = task.settings
    loader = DataLoader(
        examples, settings.batch_size, collate_fn=task.collate, num_workers=settings.num_workers, shuffle=False
    )
    model.eval()
    return join(_evidence_of_batches(task, model, loader))


def _evidence_of_batches(task: FinetuningTask, model: nn.Module, loader: DataLoader) -> Iterator[Evidence]:
    device = next(model.parameters()).device
    for batch in tqdm(loader, desc="examination", leave=False):
        inputs = cast(Batch, send_to_device(batch, device))
        with torch.no_grad():
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        predictions, references = task.compare(outputs, inputs)
        yield task.evidence(predictions.cpu(), references.cpu())


def examine(task: FinetuningTask, evidence: Evidence) -> Examined:
    """Return what is fitted to a validation set: a temperature, and a threshold for each class.

    A temperature is for whole images; thresholds are for answers of which an image may have several.
    """
    results: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    if evidence.logits is not None and evidence.labels is not None and len(evidence.logits) >= MIN_IMAGES:
        calibration = calibrate(evidence.logits, evidence.labels)
        results["calibration"] = asdict(calibration)
        fields["temperature"] = calibration.temperature
    if evidence.ranking is not None and task.has_thresholds:
        ranking = task.calibrated(evidence.ranking, fields.get("temperature", 1.0))
        thresholds, f1 = best_thresholds(ranking)
        results["thresholds"] = dict(zip(task.class_names, thresholds, strict=True))
        results["f1_at_thresholds"] = dict(zip(task.class_names, f1, strict=True))
        fields["score_thresholds"] = thresholds
    return Examined(results, fields)


def draw_examination(
    task: FinetuningTask, model: nn.Module, examples: Examples, evidence: Evidence, folder: Path
) -> None:
    """Write the pictures that the task has; all ranks call it, and the first one writes."""
    worst, title = describe_worst(evidence.errors, NUM_PICTURED)
    found = predict_examples(task, model, examples, rows=worst)
    if not PartialState().is_main_process:
        return
    if evidence.confusion is not None:
        write_file(folder / CONFUSION, draw_confusion(evidence.confusion, task.class_names).savefig)
    if evidence.ranking is not None and evidence.ranking.num_truths.any():
        write_file(folder / CURVES, draw_precision_recall(evidence.ranking, task.class_names).savefig)
    figure = draw_predictions(task, found.images, found.references, {"prediction": found.predictions})
    figure.suptitle(title, fontsize=7)
    write_file(folder / WORST, figure.savefig)
