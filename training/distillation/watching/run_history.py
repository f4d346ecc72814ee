"""The numbers of a run by step, in a file that a restart goes on with: what its picture is drawn from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from foundation.files import write_text


logger = logging.getLogger(__name__)


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
