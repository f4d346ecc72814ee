"""What several looks at an image are worth: tuned models of the grid, asked in each way about the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modeling_radio import RadioPreTrainedModel
from modeling_radio.views_radio import fit_whole
from training.demo_kit.tuning.experiments import DETECTOR_SIZE, EXPERIMENTS, LORA
from training.demo_kit.tuning.runs import Grid
from training.demo_kit.tuning.saved import reopen
from training.demo_kit.tuning.test_time.fitted import measure_fitted
from training.demo_kit.tuning.test_time.large_images import join_all
from training.demo_kit.tuning.test_time.results import FittedScore, LookScore
from training.finetuning.data.sources import load_images
from training.finetuning.examination.evidence import Evidence
from training.finetuning.run import FINAL
from training.finetuning.tasks.base import Batch, FinetuningTask
from training.finetuning.tasks.detection import NO_OBJECT, DetectionTask
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import build_task


ARM = LORA  # the way of tuning that the guides begin with
MAX_OBJECTS = 100  # as COCO's metrics count
BATCH_PIXELS = 16 * 128**2  # our choice: as a step of tuning has


@dataclass(frozen=True)
class Look:
    """One way to ask a model about an image.

    Attributes:
        options: Of the model's `predict`; None for a plain call.
        size: Side in pixels to which the image is made smaller first; None for none.
    """

    options: Mapping[str, Any] | None = None
    size: int | None = None

    def ask(self, model: Any, pixel_values: Tensor) -> Any:
        """Return the outputs for images `(batch, 3, height, width)`."""
        if self.size is not None:
            pixel_values = fit_whole(model.config, pixel_values, self.size)
        return model(pixel_values) if self.options is None else model.predict(pixel_values, **self.options)


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        experiment: Whose models and held-out images these are.
        metrics: Those that are shown, the one that decides first.
        looks: By name; the others are compared with the first.
        is_large: Whether four images beside each other are one.
    """

    experiment: str
    metrics: tuple[str, ...]
    looks: Mapping[str, Look] = field(default_factory=dict)
    is_large: bool = False


PLAIN, FLIP = {"plain": Look()}, {"flip": Look({"flip": True})}
SCALED, BOTH = {"scales": (1, 1.5)}, {"scales": (1, 1.5), "flip": True}
SCALES = {"scales 1 and 1.5": Look(SCALED)}
MASK_SIZE = EXPERIMENTS["semantic-segmentation"].size
LARGEST = 256  # of the demo's student
OFF_SEAMS = 16  # a patch: tiles smaller by it end nowhere where scenes do

SUBJECTS = {
    "digits": Subject("image-classification", ("accuracy",), {**PLAIN, **FLIP, **SCALES}),
    "several labels": Subject("multi-label", ("mean_average_precision",), {**PLAIN, **FLIP, **SCALES}),
    "masks": Subject(
        "semantic-segmentation",
        ("mean_iou",),
        {**PLAIN, **FLIP, **SCALES, "scales 1 and 1.5, flip": Look(BOTH)},
    ),
    "masks of large images": Subject(
        "semantic-segmentation",
        ("mean_iou",),
        {
            f"shrunk to {MASK_SIZE} px": Look(size=MASK_SIZE),
            f"whole, {LARGEST} px": Look(size=LARGEST),
            f"tiles of {MASK_SIZE} px": Look({"tile_size": MASK_SIZE}),
            f"tiles of {MASK_SIZE - OFF_SEAMS} px": Look({"tile_size": MASK_SIZE - OFF_SEAMS}),
        },
        is_large=True,
    ),
    "boxes": Subject(
        "object-detection",
        ("map",),
        {
            **PLAIN,
            "merged alone": Look({}),
            **FLIP,
            "scales 1 and 1.33": Look({"scales": (1, LARGEST / DETECTOR_SIZE)}),
        },
    ),
    "boxes of large images": Subject(
        "object-detection",
        ("map", "map_small"),
        {
            f"shrunk to {DETECTOR_SIZE} px": Look(size=DETECTOR_SIZE),
            f"shrunk to {LARGEST} px": Look(size=LARGEST),
            f"tiles of {DETECTOR_SIZE} px": Look({"tile_size": DETECTOR_SIZE}),
            f"tiles of {DETECTOR_SIZE - OFF_SEAMS} px": Look({"tile_size": DETECTOR_SIZE - OFF_SEAMS}),
            f"tiles of {DETECTOR_SIZE} px, flip": Look({"tile_size": DETECTOR_SIZE, "flip": True}),
        },
        is_large=True,
    ),
}
"""In the order of the report. Large images have twice the sides, so that `shrunk` halves all that they show."""


@dataclass(frozen=True)
class Tuned:
    """A model of the grid with held-out images.

    Attributes:
        task: Of the run.
        model: With adapters merged.
        images: Held-out examples.
    """

    task: FinetuningTask
    model: nn.Module
    images: Sequence[Batch]


def open_tuned(grid: Grid, experiment: str, seed: int) -> Tuned:
    """Open what a run saved, and read its held-out images.

    Args:
        grid: Where the runs lie.
        experiment: Name of the task.
        seed: Of the run.

    Raises:
        ValueError: If the run is not there.
    """
    settings = grid.settings(experiment, ARM, seed)
    if not (settings.output / FINAL).is_dir():
        raise ValueError(
            f"`output` has no model {str(settings.output / FINAL)!r}: run `python -m training.demo_kit.finetune_grid "
            f"--tasks {experiment} --arms {ARM} --seeds {seed}` first."
        )
    task = build_task(settings, load_images(settings))
    examples = build_examples(task, task.images.validation, "validation image", is_training=False)
    model: Any = reopen(task, settings)
    merged: RadioPreTrainedModel = model.merge_and_unload() if settings.uses_adapter else model
    return Tuned(task, merged.eval(), [examples[index] for index in range(len(examples))])


def measure(grid: Grid, seed: int, num_images: int) -> Iterator[LookScore | FittedScore]:
    """Measure the models of one seed in every way, and yield each score.

    Args:
        grid: Where the runs lie.
        seed: Of the runs.
        num_images: How many held-out images of each task are looked at in every way, at most, spread evenly; all of
            them where something is fitted.

    Raises:
        ValueError: If a run is not there.
    """
    for experiment in dict.fromkeys(subject.experiment for subject in SUBJECTS.values()):
        tuned = open_tuned(grid, experiment, seed)
        for name, subject in SUBJECTS.items():
            if subject.experiment == experiment:
                yield from measure_looks(tuned, name, subject, seed, num_images)
                if not subject.is_large:
                    yield from measure_fits(tuned, name, seed)


def measure_looks(tuned: Tuned, name: str, subject: Subject, seed: int, num_images: int) -> Iterator[LookScore]:
    """Ask a model about the same images in each way.

    Args:
        tuned: The model and its images.
        name: Of the subject.
        subject: What is looked at.
        seed: Of the model.
        num_images: How many at most, spread evenly; of large ones a quarter.
    """
    task, count = tuned.task, min(num_images, len(tuned.images))
    images = [tuned.images[index * len(tuned.images) // count] for index in range(count)]
    images = join_all(images) if subject.is_large else images
    for title, look in subject.looks.items():
        score = task.build_score()
        with _counted_pixels(tuned.model) as pixels:
            for batch in _batches(task, images):
                score.update(*answers(task, tuned.model, look, batch))
        found = {metric: float(value) for metric, value in score.compute().items() if metric in subject.metrics}
        yield LookScore(name, title, seed, len(images), found, sum(pixels) // len(images))


@contextmanager
def _counted_pixels(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list that gets the number of pixels of every pass."""
    pixels: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: pixels.append(inputs[0][:, 0].numel()))
    try:
        yield pixels
    finally:
        handle.remove()


def measure_fits(tuned: Tuned, name: str, seed: int) -> list[FittedScore]:
    """Measure what can be fitted to a model's plain answers to all its images.

    Args:
        tuned: The model and its images.
        name: Of the subject.
        seed: Of the model.
    """
    task, images = tuned.task, list[Evidence]()
    for batch in _batches(task, tuned.images):
        pair = answers(task, tuned.model, Look(), batch)
        images += [task.evidence(*each) for each in zip(*(part.split(1) for part in pair), strict=True)]
    return measure_fitted(name, seed, images, has_thresholds=task.has_thresholds)


def _batches(task: FinetuningTask, images: Sequence[Batch]) -> Iterator[Batch]:
    size = max(1, BATCH_PIXELS // images[0]["pixel_values"][0].numel())
    for start in range(0, len(images), size):
        yield task.collate(images[start : start + size])


@torch.no_grad()
def answers(task: FinetuningTask, model: nn.Module, look: Look, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return predictions and references of a batch as the task scores them, of boxes the most certain ones."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.settings.precision == "bf16"):
        outputs = look.ask(model, batch["pixel_values"])
    predictions, references = task.compare(outputs, batch)
    if isinstance(task, DetectionTask):
        predictions = predictions[:, :MAX_OBJECTS].clone()
        left_out = predictions[..., 5] == 0  # by merging
        predictions[..., 4] = predictions[..., 4].masked_fill(left_out, NO_OBJECT)
    return predictions, references
