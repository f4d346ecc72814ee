"""Records of a run: the log line, trackers, curves, and which images were left out."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from PIL import Image
from torch import Tensor

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import WriteError, write_text
from modeling_radio.core.ranks import mean_over_ranks, on_first_rank
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.image_table import Images
from modeling_radio.figures.progress import draw_progress
from modeling_radio.training.recipes.recipe import LoggingRecipe, Recipe, RecipeError


logger = logging.getLogger(__name__)

GRADIENT_NORM = "gradient_norm"
"""Name of the norm of a step's gradient, beside its losses."""

LINE_SECONDS = 60
"""Seconds between two lines of a log file, which has no bar. Our choice."""


class RunHistory:
    """Series of numbers, kept in memory and as JSON lines.

    Args:
        path: The file, `{"step": STEP, "values": {NAME: NUMBER}}` in each line. What is there already is read; what is
            of later steps, which are done again, is dropped.
        first_step: Steps that the run has done.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.records = [record for record in _read(path) if record[0] <= first_step]
        lines = [_line(step, values) for step, values in self.records]
        if path.exists() or lines:
            write_text(path, "".join(lines))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of a step; a step may have several records."""
        self.records.append((step, dict(values)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(step, values))

    def series(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return steps and values by name."""
        return _series(self.records)


def read_series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values by name of a run that is over; nothing where it recorded none."""
    return _series(_read(path))


def _series(records: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in records:
        for name, value in values.items():
            steps, numbers = series.setdefault(name, ([], []))
            steps.append(step)
            numbers.append(value)
    return series


def _line(step: int, values: Mapping[str, float]) -> str:
    return json.dumps({"step": step, "values": dict(values)}) + "\n"


def _read(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what a file holds; a line that a kill cut off, or that is damaged, is left out with a word."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    records = [record for record in map(_record, lines) if record is not None]
    if len(records) < len(lines):
        left_out = len(lines) - len(records)
        logger.warning("%s: %d of %d lines are damaged, and left out of the curves", path, left_out, len(lines))
    return records


def _record(line: bytes) -> tuple[int, dict[str, float]] | None:
    try:
        step, values = json.loads(line).values()
        are_numbers = isinstance(step, int) and all(isinstance(value, int | float) for value in values.values())
    except (ValueError, TypeError, AttributeError):  # no JSON, or of another form
        return None
    return (step, values) if are_numbers else None


NAME = "data.json"


def left_out_of(images: Images, image_numbers: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how many images a data set by number has, and how many were left out of it and of partitions, by reason.

    Args:
        images: The data set.
        image_numbers: By partition the numbers of the images that it sees, where these are not all.
    """
    too_small = {name: len(images) - len(numbers) for name, numbers in image_numbers.items()}
    return {"images": len(images), "left_out": dict(images.left_out), "too_small_for_partition": too_small}


def left_out_of_streams(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many streamed images were left out so far of each partition, by reason, over all ranks.

    Args:
        positions: Position to which each rank has read, as a checkpoint holds it.
    """
    counts: dict[str, Counter[str]] = {}
    for position in positions:
        for partition, stream in position.items():
            for source in stream["sources"]:
                counts.setdefault(partition, Counter()).update(source["left_out"])
    return {"left_out_so_far": {partition: dict(count) for partition, count in counts.items()}}


def write_data_record(folder: Path, recipe: Recipe, record: Mapping[str, Any]) -> None:
    """Write `data.json` into the folder of a run whose recipe leaves out small images."""
    if recipe.data.min_side_ratio is not None:
        content = {"min_side_ratio": recipe.data.min_side_ratio, **record}
        write_text(folder / NAME, json.dumps(content, indent=2) + "\n")


def describe_left_out(record: Mapping[str, Any]) -> str:
    """Return the line of the log on a data set by number."""
    reasons = [f"{count:,} {reason}" for reason, count in record["left_out"].items()] or ["none"]
    line = f"`data.min_side_ratio` left out {', '.join(reasons)}; {record['images']:,} images stay."
    small = [f"{count:,} for {name}" for name, count in record["too_small_for_partition"].items()]
    return f"{line} Of these are too small: {', '.join(small)}." if small else line


IMAGE_OPTIONS: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}
"""The trackers that are given figures, an array `(1, height, width, 3)`, and their further options.

Accelerate's other trackers take none, or in another form; the figures are files in any case.
"""


PROJECT = "radio-distillation"
"""Project under which trackers collect the runs of all recipes, unless `WANDB_PROJECT` says it."""

SHOWN_METRICS = {
    "knn": "kNN accuracy",
    "dense_fidelity_centered": "dense fidelity (centered)",
    "summary_fidelity_centered": "summary fidelity (centered)",
    "fixed_pattern": "fixed pattern",
    "shift_error": "shift error",
    "effective_rank": "effective rank",
}
"""Measurements that the terminal shows."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot record; Accelerate passes over those whose package is missing.

    Raises:
        RecipeError: If a name is unknown, or its package is not installed.
    """
    known, installed = sorted(LOGGER_TYPE_TO_CLASS), sorted(str(name) for name in get_available_trackers())
    for name in names:
        check_choice("logging.trackers", name, known, error=RecipeError)
        if name not in installed:
            raise RecipeError(
                f"`logging.trackers`: {name!r} needs a package that is not installed: run `pip install {name}`, or "
                f"choose of {installed}."
            )


def start_trackers(accelerator: Accelerator, recipe: Recipe, folder: Path, *, is_new: bool) -> None:
    """Start the trackers of a recipe; all ranks must take part.

    TensorBoard writes into `logs/`. Others get the recipe as the run's configuration; Weights & Biases also the run's
    folder as its name, and a number by which a run that was stopped goes on there: it lies in `wandb_id.txt`.

    Args:
        accelerator: Holds the trackers afterwards.
        recipe: The recipe.
        folder: Folder of the run.
        is_new: Whether the run begins, rather than goes on.
    """
    init_kwargs = {}
    if "wandb" in recipe.logging.trackers:
        run_id = on_first_rank(lambda: _wandb_id(folder / "wandb_id.txt", is_new=is_new))
        init_kwargs["wandb"] = {"name": folder.as_posix(), "id": run_id, "resume": "allow"}
    accelerator.log_with = [
        TensorBoardTracker("logs", folder) if str(each) == "tensorboard" else each for each in accelerator.log_with
    ]
    accelerator.init_trackers(os.environ.get("WANDB_PROJECT", PROJECT), init_kwargs=init_kwargs)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # which would write a second folder, of plain numbers and texts only
            tracker.store_init_configuration(recipe.to_dict())


def _wandb_id(path: Path, *, is_new: bool) -> str:
    if is_new or not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


class ProgressLog:
    """Shows images/s, the mean loss and the time left, and hands records to the trackers every few steps.

    Records are of the same steps whether or not the run was stopped in between.

    Args:
        accelerator: Holds the trackers; only the main process shows and records.
        recipe: The recipe's section: what to show, how often.
        first_step: Where the run (re)starts.
        num_steps: Where it ends.
        images_per_step: Number of images of a step, over all ranks.
        folder: Folder of the run: the main process keeps losses and measurements in `history.jsonl` and draws them in
            `pictures/progress.png`. None keeps nothing.
        speed: Returns further numbers, given the steps of an interval and its seconds; called on every rank.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: LoggingRecipe,
        first_step: int,
        num_steps: int,
        images_per_step: int,
        folder: Path | None = None,
        speed: Callable[[int, float], Mapping[str, float]] | None = None,
    ) -> None:
        self.speed = speed
        self.accelerator, self.recipe, self.images_per_step = accelerator, recipe, images_per_step
        self.folder, self.history = folder, None
        if folder is not None and accelerator.is_main_process:
            self.history = RunHistory(folder / "history.jsonl", first_step)
        self.bar = ProgressBar(
            total=num_steps,
            initial=first_step,
            desc="distill",
            unit="step",
            disable=None if accelerator.is_main_process else True,  # None: shown on a terminal only
            dynamic_ncols=True,
        )
        self.num_steps, self._said = num_steps, time.perf_counter()
        self._start_interval()

    def is_due(self, step: int) -> bool:
        """Return whether a record is written after this many steps."""
        return step % self.recipe.every_steps == 0

    def record(self, step: int, values: Mapping[str, Tensor], settings: Callable[[], Mapping[str, float]]) -> None:
        """Take one step's results.

        Args:
            step: Steps done so far.
            values: Scalars of this rank that are averaged over the interval and the ranks, `"loss"` among
                them; empty for a step that all ranks skip, which has no part in the means.
            settings: Asked, on every rank, at the end of an interval for numbers that are recorded as they are.
        """
        self.bar.update(1)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, value.new_zeros(())) + value.detach()
        self._num_steps += 1
        self._num_counted += bool(values)
        if self.is_due(step):
            self._write(step, settings())
            self._start_interval()

    def record_image(self, step: int, path: Path) -> None:
        """Hand a figure, an RGB file, to the trackers that take one."""
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))[None]  # (height, width, 3) -> (1, height, width, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name in IMAGE_OPTIONS:
                options = IMAGE_OPTIONS[tracker.name]
                cast(Any, tracker).log_images({"held_out": pixels}, step=step, **options)

    def record_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take what was measured on held-out images, as `HeldOutMetrics` names it, and draw the run so far."""
        if self.history is None or self.folder is None:
            return
        self.accelerator.log(dict(values), step=step)
        self.history.add(step, values)
        try:
            draw_progress(self.history.series(), self.folder / "pictures" / "progress.png")
        except WriteError as error:  # other ranks go on
            self.bar.say(f"Step {step}: no figure. {error}")
        self.bar.say(f"Step {step}, held-out images {describe_metrics(values)}.")
        sys.stdout.flush()  # a log file would get it much later

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the time of what is done here out of the images per second."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _start_interval(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_steps = self._num_counted = 0
        self._started = time.perf_counter()

    def _write(self, step: int, settings: Mapping[str, float]) -> None:
        means: dict[str, float] = {}
        if self._sums:
            of_rank = torch.stack([value.float() for value in self._sums.values()]) / self._num_counted
            means = dict(zip(self._sums, mean_over_ranks(of_rank).tolist(), strict=True))
        seconds = time.perf_counter() - self._started
        rate = self._num_steps * self.images_per_step / seconds
        speed = {} if self.speed is None else self.speed(self._num_steps, seconds)
        loss = f"loss {means['loss']:.3f}, " if means else ""
        use = f", MFU {speed['mfu']:.0%}" if "mfu" in speed else ""
        text = f"{loss}{rate:.0f} images/s{use}"
        self.bar.set_postfix_str(text, refresh=False)
        is_quiet = time.perf_counter() - self._said < LINE_SECONDS
        if self.bar.disable and self.accelerator.is_main_process and not is_quiet:
            self.bar.say(f"Step {step} of {self.num_steps}: {text}.")
            sys.stdout.flush()  # a log file would get it much later
            self._said = time.perf_counter()
        numbers = {**means, **settings, "images_per_second": rate, **speed}
        self.accelerator.log(numbers, step=step)
        if self.history is not None:
            drawn = {"weight", *map(_kind_of, means)} - {GRADIENT_NORM}
            self.history.add(step, {name: value for name, value in numbers.items() if _kind_of(name) in drawn})


def describe_metrics(values: Mapping[str, float]) -> str:
    """Return what a terminal shows of measurements: of each the values at all sizes, means over the teachers."""
    sizes = sorted({_size_of(name) for name in values})
    parts = []
    for metric, label in SHOWN_METRICS.items():
        found = [[value for name, value in values.items() if _is_of(name, metric, size)] for size in sizes]
        means = " ".join(f"{mean(each):.3g}" for each in found if each)
        parts += [f"{label} {means}"] if means else []
    return f"at {', '.join(map(str, sizes))} px: {'; '.join(parts)}"


def _size_of(name: str) -> int:
    return int(name.rpartition("/")[2].removesuffix("px"))


def _is_of(name: str, metric: str, size: int) -> bool:
    return name.partition("/")[0] == metric and _size_of(name) == size


def _kind_of(name: str) -> str:
    """Return "features" of the losses "features/TEACHER" and "features@SIZE/TEACHER"."""
    return name.partition("/")[0].partition("@")[0]
