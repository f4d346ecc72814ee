"""The file of measured results, written by an evaluation and shown in the model card; its tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from modeling_radio.core.files import write_text
from modeling_radio.core.tables import markdown, plain_cell


T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
TEXT_NAME, TEXT_CELL = 18, 14
"""Characters of names and of cells on a terminal. Our choice: an interval fits, and four columns are 78 wide."""
MAX_COLUMNS = 8
"""Widest table that several tasks share. Our choice."""
MAX_CLASSES = 100
"""Largest number of classes in a table. Our choice; the file has all."""
COUNTS = ("images", "objects")
"""Numbers of a class that are counts."""
STUDENT = "student"
"""Row of the checkpoint itself; the card's metadata lists only its measurements."""


def load_typed(kind: type[T], path: Path, what: str) -> T:
    """Return the typed content of a JSON file.

    Args:
        kind: Its class, a dataclass that pydantic can check.
        path: The file.
        what: Its expected content, for the message, such as "results file of `radio evaluate`".

    Raises:
        ValueError: If the file is missing, is not JSON, or has unknown or missing fields or values of other types; all
            are named.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        found = _faults(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path} is no {what}: {found}.") from error


def _faults(error: ValidationError) -> str:
    """Return all faults in one line, each with field, rule and given value."""
    found = [
        f"{'.'.join(map(str, entry['loc'])) or 'the file'}: {entry['msg']}, got {entry['input']!r:.60}"
        for entry in error.errors(include_url=False)
    ]
    return "; ".join(" ".join(fault.split()) for fault in found)


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        model: Measured model, a table row: `STUDENT`, or one to compare with, such as "raw pixels".
        task: Evaluation, such as "knn".
        metric: Name of the metric, such as "accuracy".
        dataset: Name of the data set, as in `Results.datasets`.
        value: The number, in [0, 1] or [-1, 1] for cosines.
        seed: Seed of the training run that produced the model; None if nothing was trained.
        low: Lower end of the 95 % interval over resampled images, or resampled sources of images; None for no interval.
        high: Its upper end.
    """

    __pydantic_config__ = _STRICT

    model: str
    task: str
    metric: str
    dataset: str
    value: float
    seed: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Source:
    """Teacher, weights or data set that a checkpoint was made from or measured on.

    Attributes:
        name: Name in measurements and in the configuration.
        role: Its role, such as "teacher, summary and dense features" or "training images".
        license: SPDX identifier or the license's name.
        origin: Package and version, folder, or address.
        size: Size in words, such as "99 images of 14 classes"; empty if it does not apply.
        hub_id: Its repository on the Hugging Face Hub, or None.
    """

    __pydantic_config__ = _STRICT

    name: str
    role: str
    license: str
    origin: str
    size: str = ""
    hub_id: str | None = None


@dataclass
class Results:
    """Content of a card beyond the configuration.

    Attributes:
        measurements: The numbers.
        teachers: Distilled teachers.
        datasets: Training and evaluation data.
        run: Command, date, machine, versions, seconds per phase, settings with their seed; values of JSON.
        fingerprints: Fingerprints of the images of each data set and of each model; results with equal ones are
            comparable.
        remarks: Sentences beside the numbers, such as the size of a small test set.
        by_class: Numbers of the checkpoint for each class, by the name of the class and of the metric.
    """

    __pydantic_config__ = _STRICT

    measurements: list[Measurement]
    teachers: list[Source] = field(default_factory=list)
    datasets: list[Source] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)

    def of_seed(self, seed: int) -> Results:
        """Return the rows of one seed, plus rows without a seed."""
        chosen = [measurement for measurement in self.measurements if measurement.seed in (seed, None)]
        return replace(self, measurements=chosen)

    def save(self, path: Path) -> None:
        """Write the file as JSON; a reader never sees half of it."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of the file, as `results.schema.json` beside this module has it."""
        schema = TypeAdapter(cls).json_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote.

        Raises:
            ValueError: If the file is missing, is not JSON, or has unknown or missing fields or values of other types;
                all are named.
        """
        return load_typed(cls, path, "results file of `radio evaluate` or `radio demo`")


@dataclass(frozen=True)
class Table:
    """Measurements with models, or classes, as rows and metrics as columns.

    Attributes:
        title: The task, if all columns belong to one, or "class"; otherwise empty.
        columns: Headers: task and metric such as "knn accuracy", or only the metric where the title is the task.
        rows: Name of the model or class, and one cell per column; a cell is empty where nothing was measured.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]

    def to_markdown(self) -> str:
        """Return aligned plain text that is also Markdown."""
        header, *rows = [
            [plain_cell(cell) for cell in row]
            for row in ([self.title, *self.columns], *([model, *cells] for model, cells in self.rows))
        ]
        return markdown(header, rows, aligned=True)

    def to_text(self, width: int = 80) -> str:
        """Return aligned text for a terminal of so many columns; what does not fit beside goes below.

        Headers and names are wrapped, and intervals stand below their value.
        """
        columns = [
            [
                textwrap.wrap(name.replace("_", " "), TEXT_CELL),
                *(cells[number].replace(" [", "\n[").split("\n") for _, cells in self.rows),
            ]
            for number, name in enumerate(self.columns)
        ]
        names = [textwrap.wrap(name, TEXT_NAME) or [""] for name in (self.title, *(name for name, _ in self.rows))]
        count = max(1, (width - TEXT_NAME) // (TEXT_CELL + 1))
        blocks = []
        for start in range(0, len(columns), count):
            lines = []
            for cells in zip(names, *columns[start : start + count], strict=True):
                for name, *others in zip_longest(*cells, fillvalue=""):
                    shown = "".join(f" {other:>{TEXT_CELL}}" for other in others)
                    lines.append(f"{name:<{TEXT_NAME}}{shown}".rstrip())
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def build_tables(measurements: Sequence[Measurement]) -> list[Table]:
    """Arrange measurements as tables, in order of appearance.

    Tasks of the same models share a table as long as it stays narrow; several seeds become mean and deviation.
    """
    models_of_task: dict[str, dict[str, None]] = {}  # dictionaries as ordered sets
    for measurement in measurements:
        models_of_task.setdefault(measurement.task, {})[measurement.model] = None
    groups: dict[frozenset[str], list[str]] = {}
    for task, models in models_of_task.items():
        groups.setdefault(frozenset(models), []).append(task)
    tables = []
    for tasks in groups.values():
        together = [m for m in measurements if m.task in tasks]
        num_columns = len({(m.task, m.metric) for m in together})
        parts = [tasks] if num_columns <= MAX_COLUMNS else [[task] for task in tasks]
        tables += [_build_table([m for m in together if m.task in part]) for part in parts]
    return tables


def class_tables(results: Results) -> list[Table]:
    """Return the table of the numbers of each class; none if there are no such numbers, or too many classes to read."""
    if not 0 < len(results.by_class) <= MAX_CLASSES:
        return []
    columns = list(dict.fromkeys(name for numbers in results.by_class.values() for name in numbers))
    rows = [
        (name, [_class_cell(column, numbers.get(column)) for column in columns])
        for name, numbers in results.by_class.items()
    ]
    return [Table("class", [column.replace("_", " ") for column in columns], rows)]


def _class_cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if column in COUNTS else f"{value:.3f}"


def _build_table(measurements: Sequence[Measurement]) -> Table:
    tasks = {measurement.task for measurement in measurements}
    title = tasks.pop() if len(tasks) == 1 else ""
    values: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        column = measurement.metric if title else f"{measurement.task} {measurement.metric}"
        key = (measurement.model, column)
        values.setdefault(key, []).append(measurement)
    columns = list(dict.fromkeys(column for _, column in values))
    models = list(dict.fromkeys(model for model, _ in values))
    cells = {model: [format_values(values.get((model, column), [])) for column in columns] for model in models}
    return Table(title, columns, list(cells.items()))


def format_values(measurements: Sequence[Measurement]) -> str:
    """Return "0.612", with its interval "0.612 [0.581, 0.640]"; over several seeds "0.612 +- 0.010"; "" for none.

    The deviation is that of the sample. A number that is not finite becomes a dash.
    """
    if not measurements:
        return ""
    values = [measurement.value for measurement in measurements]
    if not all(map(isfinite, values)):
        return "-"
    if len(values) > 1:
        return f"{mean(values):.3f} +- {stdev(values):.3f}"
    low, high = measurements[0].low, measurements[0].high
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{values[0]:.3f}{interval}"
