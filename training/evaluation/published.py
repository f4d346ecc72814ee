"""The tables of papers, measured on the sets that are there, with our numbers beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from modeling_radio.core.settings import read_yaml
from modeling_radio.core.tables import markdown, one_line
from modeling_radio.model_cards.results import STUDENT, Results
from modeling_radio.training.evaluation.public_sets import find_public
from modeling_radio.training.evaluation.settings import PRESETS, EvaluationSettings


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
        remark: What the paper leaves open.
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
        measure: Measures one row.

    Raises:
        ValueError: If no row could be measured.
    """
    assert settings.table is not None
    assert settings.data_root is not None
    table = published_tables()[settings.table]
    models = list(dict.fromkeys(model for row in table.rows for model in row.values))
    lines, missing, remarks = [], [], []
    for row in table.rows:
        own = math.nan
        try:
            own = _measured(row, settings, settings.data_root, measure)
        except ValueError as error:
            missing.append(f"{row.name}: {one_line(str(error))}")
        shown = "-" if math.isnan(own) else f"{own:.2f}"
        allowed = "?" if row.tolerance is None else f"{row.tolerance:.1f}"
        lines.append([row.name, shown, *(str(row.values.get(model, "")) for model in models), allowed])
        remarks += [f"{row.name}: {row.remark}"] if row.remark else []
    if len(missing) == len(table.rows):
        raise ValueError(f"`data_root` must have a set of the table, got {str(settings.data_root)!r}: {missing[0]}")
    header = [table.title, settings.checkpoint.name, *models, "allowed difference"]
    parts = [markdown(header, lines, aligned=True), f"Percent; published numbers from {table.address}."]
    for title, entries in (("Not measured", missing), ("Left open by the paper", remarks)):
        parts += ["\n".join([f"{title}:", *(f"- {entry}" for entry in entries)])] if entries else []
    return "\n\n".join(parts)


def _measured(
    row: PublishedRow, settings: EvaluationSettings, root: Path, measure: Callable[[EvaluationSettings], Results]
) -> float:
    """Return the percentage of a row.

    Raises:
        ValueError: If it cannot be measured here; the message says why, and where the set comes from.
    """
    public = find_public(PRESETS[row.preset]["layout"])
    folder = root / public.folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; {public.title} comes from {public.address}")
    given: dict[str, Any] = {name: getattr(settings, name) for name in settings.model_fields_set}
    given = {"baselines": [], **given, "table": None, "data_root": None, "preset": row.preset, "data": str(folder)}
    given["tasks"] = [row.task]
    if settings.output is not None:
        given["output"] = settings.output.with_suffix(f".{row.preset}.{row.task}.json")
    found = measure(EvaluationSettings(**given | row.settings)).measurements
    values = [each.value for each in found if (each.model, each.task, each.metric) == (STUDENT, row.task, row.metric)]
    return 100 * values[0]
