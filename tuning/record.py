"""Record of a tuned folder for its card: its origin, and its results on the validation images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.hub import find_folder
from modeling_radio.core.timing import Clock, describe_run
from modeling_radio.data.sources import public_name
from modeling_radio.metrics.results import STUDENT, Measurement, Results, Source
from modeling_radio.model_cards.build import RESULTS
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.model_cards.metadata import ABOUT_TRAINING
from modeling_radio.training.student.provenance import started_from
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks.base import FinetuningTask


NOT_SHOWN = ("checkpoint", "task", "data", "output", "num_workers", "device")
"""Settings that the command or nothing about the result depends on."""
MOST_COUNTED = 20
"""Our choice: the images of more classes than these are not counted class by class."""


@dataclass(frozen=True)
class TuningRecord:
    """Lineage and results of a tuned model.

    Attributes:
        lineage: Base, its teachers and all training images.
        results: Measurements on the validation images, and how they were made.
    """

    lineage: Lineage
    results: Results

    def save_pretrained(self, folder: Path) -> None:
        """Write both files into a folder, from which `model_cards.build` fills the card."""
        self.lineage.save(folder)
        self.results.save(folder / RESULTS)


def record_run(
    task: FinetuningTask, metrics: Mapping[str, float], clock: Clock, seconds_before: float = 0.0
) -> TuningRecord:
    """Return what a run says of the model that it tuned; folders are called by their names.

    Args:
        task: The task with its images.
        metrics: Metrics of the saved state on the validation images.
        clock: Phases of the run.
        seconds_before: Training time of the run before its last interruption, in seconds.
    """
    settings, name = task.run_settings, public_name(task.settings.data)
    about = {"license": "see its origin", "origin": name.origin, "hub_id": name.hub_id}
    trained_on = Source(name.name, f"{ABOUT_TRAINING}: labeled images", size=_size(task, is_training=True), **about)
    measured_on = Source(name.name, "validation images", size=_size(task, is_training=False), **about)
    base = started_from(settings.checkpoint, folder=find_folder(settings.checkpoint))
    run = describe_run(recorded_command("radio finetune", settings, ["checkpoint"]), clock)
    if seconds_before:
        run["seconds"]["training"] += round(seconds_before, 1)
        run = {key: value for key, value in run.items() if not key.startswith("energy")}  # of the last session only
    fields = FinetuneSettings.model_fields
    run["settings"] = {
        key: value
        for key, value in settings.to_dict().items()
        if key not in NOT_SHOWN and (fields[key].is_required() or value != fields[key].default)
    }
    lineage = Lineage([], base.weights, [trained_on, *base.images])
    measured = {key: value for key, value in metrics.items() if isfinite(value)}
    found = [
        Measurement(STUDENT, settings.task, metric, name.name, value, settings.seed)
        for metric, value in measured.items()
    ]
    remark = f"Of the states of this run the one with the best {task.best_metric} on these images is kept."
    return TuningRecord(lineage, Results(found, datasets=[measured_on], run=run, remarks=[remark]))


def _size(task: FinetuningTask, *, is_training: bool) -> str:
    """Return the number of images, of few classes with that of each; a stream is not counted."""
    rows = task.images.train if is_training else task.images.validation
    if is_training and task.images.stream is not None:
        return "a stream"
    text = f"{len(rows)} images"
    if task.images.problem_type in (None, "regression") or len(task.class_names) > MOST_COUNTED:
        return text
    counts: Counter[int] = Counter()
    targets: list[Any] = rows["target"][:]
    for label in targets:
        counts.update(set(label) if isinstance(label, list) else [label])
    each = [counts[number] for number in range(len(task.class_names))]
    if len(set(each)) == 1:
        return f"{text}, {each[0]} of each class"
    return f"{text}: " + ", ".join(f"{name} {count}" for name, count in zip(task.class_names, each, strict=True))
