"""The tables of papers, measured on the sets that are there, with our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from modeling_radio.core.settings import read_yaml
from modeling_radio.core.tables import markdown, one_line
from modeling_radio.evaluation.public_sets import find_public
from modeling_radio.evaluation.settings import PRESETS, EvaluationSettings
from modeling_radio.metrics.results import STUDENT, Results


@dataclass(frozen=True)
class PublishedRow:
    """A number of a table.

    Attributes:
        name: Benchmark and protocol.
        values: The published percentages by model.
        preset: Preset that measures it.
        task: Task of the measurement.
        metric: Its metric.
        settings: Further settings.
        tolerance: Difference in points that what the paper leaves open explains; None where it cannot be told.
        remark: Facts that the paper leaves open.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    values: dict[str, float]
    preset: str
    task: str
    metric: str
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper: its title, its address, and its rows."""

    title: str
    address: str
    rows: list[PublishedRow]


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Return the tables of `published.yaml` by name."""
    content = read_yaml(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, PublishedTable]).validate_python(content)


def measure_table(settings: EvaluationSettings, measure: Callable[[EvaluationSettings], Results]) -> str:
    """Measure the rows whose set is below `data_root`; return the table and what is missing as Markdown.

    Args:
        settings: Has `table` and `data_root`.
        measure: Measures rows that are alike.

    Raises:
        ValueError: If no row could be measured.
    """
    assert settings.table is not None
    assert settings.data_root is not None
    table = published_tables()[settings.table]
    models = list(dict.fromkeys(model for row in table.rows for model in row.values))
    found, missing = dict[str, float](), list[str]()
    for rows in _alike(table.rows):
        own, others = _measured_or_missing(rows, settings, settings.data_root, measure)
        found, missing = found | own, missing + others
    lines = [
        [
            row.name,
            f"{found[row.name]:.2f}" if row.name in found else "-",
            *(str(row.values.get(model, "")) for model in models),
            "?" if row.tolerance is None else f"{row.tolerance:.1f}",
        ]
        for row in table.rows
    ]
    remarks = [f"{row.name}: {row.remark}" for row in table.rows if row.remark]
    if len(missing) == len(table.rows):
        raise ValueError(f"`data_root` must have a set of the table, got {str(settings.data_root)!r}: {missing[0]}")
    header = [table.title, settings.checkpoint.name, *models, "allowed difference"]
    parts = [markdown(header, lines, aligned=True), f"Percent; published numbers from {table.address}."]
    for title, entries in (("Not measured", missing), ("Left open by the paper", remarks)):
        parts += ["\n".join([f"{title}:", *(f"- {entry}" for entry in entries)])] if entries else []
    return "\n\n".join(parts)


def _alike(rows: Sequence[PublishedRow]) -> list[list[PublishedRow]]:
    """Return rows that one evaluation measures: of one preset at one size."""
    groups: dict[tuple[str, int | None], list[PublishedRow]] = {}
    for row in rows:
        groups.setdefault((row.preset, row.settings.get("size")), []).append(row)
    return list(groups.values())


def _measured_or_missing(
    rows: Sequence[PublishedRow],
    settings: EvaluationSettings,
    root: Path,
    measure: Callable[[EvaluationSettings], Results],
) -> tuple[dict[str, float], list[str]]:
    """Return the percentages of rows by name, and why others have none; where one fails each is tried alone."""
    try:
        return _measured(rows, settings, root, measure), []
    except ValueError as error:
        if len(rows) == 1:
            return {}, [f"{rows[0].name}: {one_line(str(error))}"]
    parts = [_measured_or_missing([row], settings, root, measure) for row in rows]
    return {name: value for own, _ in parts for name, value in own.items()}, [
        line for _, more in parts for line in more
    ]


def _measured(
    rows: Sequence[PublishedRow],
    settings: EvaluationSettings,
    root: Path,
    measure: Callable[[EvaluationSettings], Results],
) -> dict[str, float]:
    """Return the percentages of rows that are alike by name.

    Raises:
        ValueError: If they cannot be measured here; the message says why, and where the set comes from.
    """
    preset = rows[0].preset
    public = find_public(PRESETS[preset]["layout"])
    folder = root / public.folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; {public.title} comes from {public.address}")
    given: dict[str, Any] = {name: getattr(settings, name) for name in settings.model_fields_set}
    given = {"baselines": [], **given, "table": None, "data_root": None, "preset": preset, "data": str(folder)}
    given["tasks"] = [row.task for row in rows]
    for row in rows:
        given |= row.settings
    if settings.output is not None:
        size = f".{given['size']}px" if "size" in given else ""
        given["output"] = settings.output.with_suffix(f".{preset}{size}.json")
    measured = measure(EvaluationSettings(**given)).measurements
    values = {(each.task, each.metric): each.value for each in measured if each.model == STUDENT}
    return {row.name: 100 * values[row.task, row.metric] for row in rows}
