"""A tuned model's own answers on labeled images, scored as `radio finetune` scores its validation images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeling_radio import TASK_MODELS, RadioConfig, RadioPreTrainedModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.opening import Opened, open_model, read_radio_config
from modeling_radio.core.ranks import device_of_process, rank_and_count
from modeling_radio.core.settings import TileOptions, hash_of
from modeling_radio.core.timing import Clock, describe_run
from modeling_radio.data.labeled.images import LabeledImages, load_images, load_measured
from modeling_radio.data.labeled.rows import choose_rows, path_within, table_state
from modeling_radio.data.labeled.tables import image_paths
from modeling_radio.data.sources import public_name
from modeling_radio.evaluation.models.radio import AUTOCAST_TYPES, tiles_of
from modeling_radio.evaluation.run import check_outputs
from modeling_radio.evaluation.settings import EvaluationSettings, is_named_set
from modeling_radio.figures.page import Drawing, Section
from modeling_radio.figures.predictions import check_tiles, predict_tiles
from modeling_radio.metrics.bootstrap import Interval, bootstrap_intervals
from modeling_radio.metrics.results import STUDENT, Measurement, Results, Source, class_tables
from modeling_radio.metrics.tallies import (
    ClassTally,
    DepthTally,
    LabelTally,
    NumberTally,
    ObjectTally,
    PixelTally,
    Tally,
)
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.tasks_radio import TASKS
from modeling_radio.tuning.data import Sample, build_transform
from modeling_radio.tuning.error_analysis import (
    CONFUSION,
    CURVES,
    WORST,
    PredictedExamples,
    compared_batches,
    examination_figures,
    predict_examples,
    worst_images,
)
from modeling_radio.tuning.settings import SETTINGS, TaskDataSettings
from modeling_radio.tuning.tasks import find_task
from modeling_radio.tuning.tasks.base import Evidence, FinetuningTask, TableExamples, join
from modeling_radio.tuning.tasks.classification import MultiLabelTask, RegressionTask
from modeling_radio.tuning.tasks.dense import DepthTask, SegmentationTask
from modeling_radio.tuning.tasks.detection import DetectionScore, DetectionTask, InstanceSegmentationTask
from modeling_radio.views_radio import ViewOptions


READ = (
    *("checkpoint", "data", "base", "size", "output", "report", "batch_size", "num_workers", "dtype", "device"),
    *("resamples", "max_images", "test_split", "streaming", "image_column", "tile_size", "tile_overlap"),
)
"""Settings that these measurements read, beside those of the labels."""
COLUMNS = {"label_column": "labels", "mask_column": "masks", "object_column": "objects", "depth_column": "depth maps"}
"""Settings that name the column of the labels, one for each kind."""


def task_of_answers(settings: EvaluationSettings) -> str | None:
    """Return the task, a key of `TASKS`, of the checkpoint's own head if its answers are what the settings ask for.

    They are where data are given, but neither tasks nor a protocol, and the checkpoint has a head of our own.
    """
    is_asked = settings.tasks is None and settings.preset is None and settings.table is None
    if not is_asked or settings.data is None or is_named_set(settings.data):
        return None
    try:
        values = read_radio_config(str(settings.checkpoint))
    except (OSError, ValueError):
        return None  # who opens it as a backbone says what is wrong
    model = TASK_MODELS.get((values.get("architectures") or [""])[0])
    measured = {task.class_name: name for name, task in TASKS.items() if task.tuning is not None}
    names = [] if model is None else [each.__name__ for each in model.__mro__]
    return next((measured[name] for name in names if name in measured), None)


def measure_answers(settings: EvaluationSettings, name: str) -> tuple[Results, list[Section]]:
    """Measure a checkpoint's own answers.

    Args:
        settings: Settings of the evaluation.
        name: Result of `task_of_answers`.

    Returns:
        The measurements, and sections for their page.

    Raises:
        ValueError: If the checkpoint is damaged or an adapter whose base must be named, the data cannot be opened, lack
            the labels of the task or have classes that the model does not know, or a setting has no use here.
    """
    _check_settings(settings, name)
    command = recorded_command("radio evaluate", settings, ["checkpoint"])
    check_outputs(settings)
    is_first = rank_and_count()[0] == 0
    clock = Clock() if is_first else Clock(report=lambda line: None)
    clock.report(
        f"The answers of the checkpoint's own head are measured, of the task {name}. `--tasks knn` and others measure "
        "its backbone."
    )
    checkpoint = str(settings.checkpoint)
    opened = open_model(checkpoint, device=device_of_process(settings.device), base=settings.base)
    task, remarks = _open_task(settings, name, opened)
    answers = _Answers(task, opened, settings)
    with clock.phase(name):
        measurements = answers.measure()
    run = {**describe_run(command, clock), "settings": _decisive(settings, task)}
    rows, source = task.images.validation, str(settings.data)
    about = public_name(source)
    data = Source(
        about.name, "evaluation", "see its origin", about.origin, f"{len(rows)} images measured", about.hub_id
    )
    state = hash_of({"state": table_state(rows, ["image", "target"], source)})[:16]
    results = Results(
        [replace(each, dataset=about.name) for each in measurements],
        Lineage.find(Path(checkpoint).expanduser()).teachers,
        [data],
        run,
        remarks,
        {f"images of {about.name}": state, STUDENT: opened.identity},
        answers.by_class(),
    )
    with clock.phase("pictures"):
        sections = answers.sections(results) if settings.output is not None and settings.report and is_first else []
    return results, sections


def _check_settings(settings: EvaluationSettings, name: str) -> None:
    """Refuse settings that only measurements of a backbone read, and columns of other labels."""
    column = _column_of(name)
    read = {*READ, column, *({"box_format"} if column == "object_column" else ())}
    read |= {"depth_scale"} if column == "depth_column" else set()
    fields = type(settings).model_fields
    given = [each for each in settings.model_fields_set - read if getattr(settings, each) != fields[each].get_default()]
    if given:
        raise ValueError(
            f"`{min(given)}` has no use for the answers of a model for {name}: leave it out, or name `tasks`, which "
            "measure its backbone."
        )


def _column_of(name: str) -> str:
    """Return the setting for the column of a task's labels."""
    targets = find_task(name).targets
    if targets.are_of_images:
        return "label_column"
    if targets.have_boxes:
        return "object_column"
    return "mask_column" if targets.have_classes else "depth_column"


def _open_task(settings: EvaluationSettings, name: str, opened: Opened) -> tuple[FinetuningTask, list[str]]:
    """Return the task with its images, and remarks about these."""
    config, task_class = opened.model.config, find_task(name)
    has_classes = TASKS[name].has_classes and config.problem_type != "regression"
    known = tuple(opened.class_names[number] for number in sorted(opened.class_names)) if has_classes else ()
    asked = TaskDataSettings(
        checkpoint=str(settings.checkpoint),
        task=name,
        data=str(settings.data),
        size=input_size(opened, settings.size, is_checked=settings.tile_size is None),
        streaming=settings.streaming,
        image_column=settings.image_column,
        target_column=getattr(settings, _column_of(name)),
        box_format=settings.box_format,
        depth_scale=settings.depth_scale,
        num_channels=None if opened.processor.do_convert_rgb else config.num_channels,
        config={"semantic_loss_ignore_index": config.semantic_loss_ignore_index},
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    task_class.check_settings(asked)
    held_out = _held_out(settings, asked, known)
    images = held_out or load_measured(asked, task_class.targets, known, settings.test_split)
    remarks = _remarks(settings, images, is_held_out=held_out is not None)
    if settings.max_images is not None:
        chosen = choose_rows(images.validation, settings.max_images, settings.seed, "test")
        images = replace(images, validation=chosen)
    own = _problem_type(config) if name == "image-classification" else images.problem_type
    if images.problem_type != own:
        raise ValueError(
            f"`data` {settings.data!r} must have labels for {own} as the checkpoint's head, got {images.problem_type}."
        )
    task = task_class.for_labels(images.problem_type)(asked, images)
    task.prepare(opened.model)
    return task, remarks


def _problem_type(config: RadioConfig) -> str:
    return str(config.problem_type or "single_label_classification")


def input_size(opened: Opened, shorter_px: int | None = None, *, is_checked: bool = True) -> tuple[int, int]:
    """Return the height and width of the model's inputs in pixels.

    Args:
        opened: The model.
        shorter_px: Shorter side; None takes the size that the folder's processor has, as of a tuned model.
        is_checked: Whether the model sees them whole, so that its largest side matters.

    Raises:
        ValueError: If the model does not take images of `shorter_px`.
    """
    config = opened.model.config
    sides = _fixed_size(opened) or config.preferred_resolution
    if shorter_px is not None:
        step, scale = config.resolution_step, shorter_px / min(sides)
        sides = [max(round(side * scale / step), 1) * step for side in sides]
    height, width = sides
    if is_checked:
        config.check_resolution(height, width, argument="size")
    return height, width


def _fixed_size(opened: Opened) -> tuple[int, int] | None:
    """Return the height and width to which the processor resizes all images; None where they keep their shape."""
    size: Any = opened.processor.size  # declared as a union
    return (size.height, size.width) if size.height and size.width else None


def _held_out(settings: EvaluationSettings, asked: TaskDataSettings, known: tuple[str, ...]) -> LabeledImages | None:
    """Return the images that the run of the checkpoint held out of the same data; None if there is no such run."""
    path = settings.checkpoint.expanduser().parent / SETTINGS
    stored = read_json(path) if path.is_file() and settings.test_split is None else {}
    if not _is_same_source(str(stored.get("data")), asked.data) or stored.get("streaming") or asked.streaming:
        return None
    names = (
        *("seed", "validation_share", "skip_damaged", "classes", "image_column", "target_column", "box_format"),
        "depth_scale",
    )
    run = TaskDataSettings(**{**asked.to_dict(), **{name: stored[name] for name in names if name in stored}})
    images = load_images(run, find_task(asked.task).targets)
    if known and images.class_names and images.class_names != known:
        return None
    empty: Any = images.validation.select([])
    return replace(images, train=empty, class_names=known or images.class_names)


def _is_same_source(one: str, other: str) -> bool:
    paths = [Path(each).expanduser() for each in (one, other)]
    return one == other or (paths[1].exists() and paths[0].resolve() == paths[1].resolve())


def _remarks(settings: EvaluationSettings, images: LabeledImages, *, is_held_out: bool) -> list[str]:
    """Return sentences about the images that are measured."""
    if is_held_out:
        return ["The run of `radio finetune` held these images out, and chose its best state by them."]
    name = public_name(str(settings.data)).name
    learned_from = [source.name for source in Lineage.find(settings.checkpoint.expanduser()).images]
    if not images.is_whole or name not in learned_from:
        return []
    return [
        f"The checkpoint learned from images of this name, {name!r}, and these have no split to measure: where they "
        "are the same, the numbers are too good."
    ]


def _decisive(settings: EvaluationSettings, task: FinetuningTask) -> dict[str, Any]:
    """Return the settings that decide the numbers."""
    names = ("dtype", "resamples", "max_images", "test_split", "image_column", *COLUMNS)
    names += tuple(TileOptions.model_fields) if settings.tile_size is not None else ()
    given = {name: value for name, value in settings.to_dict().items() if name in names and value is not None}
    return {"size": list(task.size), **given}


class _OwnSize(nn.Module):
    """Resizes each image as the processor does, to a size of its own."""

    def __init__(self, opened: Opened, task: FinetuningTask):
        super().__init__()
        self.opened, self.task = opened, task

    def forward(self, sample: Sample) -> Sample:
        height, width = self.opened.processor.get_output_size(*sample["image"].shape[-2:])
        return build_transform(self.task.settings, self.task.targets, (height, width), is_training=False)(sample)


class _Tiled(nn.Module):
    """A model whose answer is that of `predict`, in tiles."""

    def __init__(self, model: RadioPreTrainedModel, tiles: ViewOptions):
        super().__init__()
        check_tiles(model, tiles)
        self.model, self.tiles = model, tiles

    def forward(self, pixel_values: Tensor) -> Any:
        return predict_tiles(self.model, pixel_values, self.tiles)


class _Answers:
    """The answers of a model on the images of a task.

    Args:
        task: The task with its images.
        opened: The model.
        settings: Settings of the evaluation.
    """

    def __init__(self, task: FinetuningTask, opened: Opened, settings: EvaluationSettings):
        self.task, self.opened, self.settings = task, opened, settings
        tiles = tiles_of(settings)
        self.model = opened.model if tiles is None else _Tiled(opened.model, tiles)
        self.has_own_sizes = _fixed_size(opened) is None and settings.size is None and task.targets.are_of_images
        transform = _OwnSize(opened, task) if self.has_own_sizes else None
        if transform is None:
            transform = build_transform(task.settings, task.targets, task.size, is_training=False)
        images = task.images
        self.examples = TableExamples(images.validation, task, transform, task.settings.seed, images.measured)
        self.score = task.build_score()
        self.tally = build_tally(task, opened.model.config.temperature)

    def measure(self) -> list[Measurement]:
        """Return the numbers of a constant answer, and of the model with their intervals."""
        with torch.no_grad(), self._autocast():
            self.evidence = join(self._batches())
        scores = {**self.tally.once(), **{name: float(value) for name, value in self.score.compute().items()}}
        intervals = bootstrap_intervals(
            self.tally.compute,
            self.tally.num_images,
            num_resamples=self.settings.resamples,
            seed=self.settings.seed,
            limits=self.tally.limits,
        )
        constant = self._constant()
        return [*self._rows(self.tally.constant_name, constant, {}), *self._rows(STUDENT, scores, intervals)]

    def _rows(self, model: str, scores: Mapping[str, float], intervals: Mapping[str, Interval]) -> list[Measurement]:
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        task, none = self.task.settings.task, (None, None)
        return [
            Measurement(model, task, name, "", value, None, *intervals.get(name, none))
            for name, value in finite.items()
        ]

    def _autocast(self) -> AbstractContextManager:
        dtype = AUTOCAST_TYPES[self.settings.dtype]
        return torch.autocast(self.opened.model.device.type, dtype, enabled=dtype is not None)

    def _batches(self) -> Iterator[Evidence]:
        """Run the model; add each batch to the scores, and yield its errors."""
        batch_size = 1 if self.has_own_sizes else None
        for predictions, references in compared_batches(self.task, self.model, self.examples, batch_size):
            self.score.update(predictions, references)
            if isinstance(self.score, DetectionScore):
                self.tally.add(*unpacked_rows(self.score, predictions, references))
            else:
                self.tally.add(predictions, references)
            yield self.task.evidence(predictions, references)

    def _constant(self) -> dict[str, float]:
        """Return the scores of a constant answer; that for depth is known only now, and needs the depth maps again."""
        if not isinstance(self.tally, DepthTally):
            return self.tally.constant()
        tally = DepthTally()
        for index in range(len(self.examples)):
            depth = self.examples[index]["labels"][None]
            tally.add(torch.full_like(depth, self.tally.mean_depth), depth)
        return tally.once()

    def by_class(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each class that are defined, by the name of the class."""
        columns = {name: values.tolist() for name, values in self.tally.by_class().items()}
        rows = zip(*columns.values(), strict=True)
        return {
            name: {column: float(value) for column, value in zip(columns, row, strict=True) if math.isfinite(value)}
            for name, row in zip(self.task.class_names, rows, strict=False)
        }

    def sections(self, results: Results) -> list[Section]:
        """Return sections of the numbers of each class, and of pictures."""
        rows = worst_images(self.evidence)
        with torch.no_grad(), self._autocast():
            found = self._predict(rows)
        figures = examination_figures(self.task, self.evidence, found)
        tables = class_tables(results)
        sections = [Section("Each class", tables=tables)] if tables else []
        names = _image_names(self.task, rows)
        for name, (title, text) in PICTURES.items():
            if name in figures:
                items = names if name == WORST else []
                drawing = Drawing.of(figures[name], f"{title}. {text}")
                sections.append(Section(title, text, drawing=drawing, items=items))
        return sections

    def _predict(self, rows: Sequence[int]) -> PredictedExamples:
        task, model = self.task, self.model
        if not self.has_own_sizes:
            return predict_examples(task, model, self.examples, rows=rows)
        each = [predict_examples(task, model, self.examples, rows=[row]) for row in rows]
        predictions, references = (torch.cat(parts) for parts in zip(*[one[1:] for one in each], strict=True))
        return PredictedExamples([one.images[0] for one in each], predictions, references)


PICTURES = {
    WORST: ("Worst images", "The images with the largest errors: the truth, and the model's answer below it."),
    CONFUSION: ("Confusion", "Shares of the predicted classes for each true class."),
    CURVES: ("Precision over recall", "A curve for each class, of many classes for the worst."),
}
"""Titles and texts of the figures."""


def build_tally(task: FinetuningTask, temperature: float = 1.0) -> Tally:
    """Return new scores of a task from which intervals follow.

    Args:
        task: The task.
        temperature: Divides the logits of classes, as in the pipeline.
    """
    num_classes = len(task.class_names)
    if isinstance(task, SegmentationTask):
        return PixelTally(num_classes, task.ignore_index)
    if isinstance(task, DetectionTask):
        has_masks = isinstance(task, InstanceSegmentationTask)
        return ObjectTally(num_classes, ("", "mask_") if has_masks else ("",))
    plain = {DepthTask: DepthTally, MultiLabelTask: LabelTally, RegressionTask: NumberTally}
    found = next((tally for kind, tally in plain.items() if isinstance(task, kind)), None)
    return ClassTally(num_classes, temperature) if found is None else found()


def unpacked_rows(score: DetectionScore, *batches: Tensor) -> list[list[dict[str, Tensor]]]:
    """Return the objects of each image of batches of rows, in the layout of `DetectionTask`."""
    return [[score.unpack(rows) for rows in batch] for batch in batches]


def _image_names(task: FinetuningTask, rows: Sequence[int]) -> list[str]:
    """Return the files of images, in the folder of the data, or their numbers."""
    paths, folder = image_paths(task.images.validation, "image"), Path(task.settings.data).expanduser()
    named = ((row, paths[row]) for row in rows)
    return [f"{task.images.measured} {row}" if path is None else path_within(Path(path), folder) for row, path in named]
