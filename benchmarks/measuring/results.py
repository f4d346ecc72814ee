"""Files of results: `benchmarks/results/PROGRAM_SUBJECT_DATE_MACHINE.json`, each written whole."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring.machine import describe_machine, file_name_of
from foundation.files import write_text
from foundation.tables import markdown


RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path("runs/benchmarks-quick")
"""Where quick looks write, so that they replace nothing that was measured with care."""
FOLDER_VARIABLE = "RADIO_BENCHMARK_RESULTS"
"""Of the environment: another folder for what a process reports."""
Row = Mapping[str, object]


class Result(NamedTuple):
    """One file of results.

    Attributes:
        program: Which benchmark wrote it.
        machine: What its numbers depend on, see `describe_machine`.
        subject: What was measured, such as the name of a preset.
        rows: The numbers.
        facts: What holds for all rows, such as the measured peak of the machine.
    """

    program: str
    machine: Mapping[str, Any]
    subject: str
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]


def report(
    program: str,
    subject: str,
    rows: Sequence[Row],
    *,
    device: str = "cpu",
    facts: Mapping[str, object] | None = None,
    is_quick: bool = False,
) -> Path:
    """Print a program's rows as a table and write them, with what they depend on; return the file.

    Rows may have different columns; the table has all of them, in the order in which they appear. Those of a quick look
    have a folder of their own.
    """
    machine = describe_machine(device)
    content = {
        "program": program,
        "machine": machine,
        "preset": subject,
        **({"facts": facts} if facts else {}),
        "rows": rows,
    }
    folder = QUICK_RESULTS if is_quick else Path(os.environ.get(FOLDER_VARIABLE, RESULTS))
    path = folder / f"{program}_{subject}_{file_name_of(machine)}.json"
    write_text(path, json.dumps(content, indent=2) + "\n")
    print(f"\n{table_of(rows)}\n\n{json.dumps({**machine, **(facts or {})})}\nWrote {path}.")
    return path


def table_of(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown, with an empty cell where a row lacks a column."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown(columns, [[str(row.get(column, "")) for column in columns] for row in rows])


def load_results(program: str, folder: Path | None = None) -> list[Result]:
    """Return the stored results of a program, the oldest first."""
    found = []
    for path in sorted((folder or RESULTS).glob(f"{program}_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["program"] != program:
            continue  # whose name begins alike
        found.append(Result(program, content["machine"], content["preset"], content["rows"], content.get("facts", {})))
    return sorted(found, key=lambda result: result.machine["date"])
