"""Writes the tables of `docs/benchmarks.md` from the stored results, each between its two marks.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; all around it is written by hand.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.measuring import RESULTS, ROOT, Result, Row, Rows, load_results, table_of
from core.files import write_text


PAGE = ROOT / "docs" / "benchmarks.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LEAST_GROUPED = 10_000
"""From here on numbers have commas between thousands, and no fraction."""


def condense_speed(rows: Rows) -> Rows:
    """Return one row for each network, data type and batch: milliseconds and the ratio to native at each size."""
    table: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        batch = "one" if row["batch"] == 1 else "full"
        key = (row["dtype"], batch, row["contender"])
        line = table.setdefault(key, {"dtype": row["dtype"], "batch": batch, "network": row["contender"]})
        line[f"{row['size_px']} px, ms"] = row["ms"]
        line[f"{row['size_px']} px, times native"] = row["times as fast as native"].split()[0]
        line[f"{row['size_px']} px, share of peak"] = row["share of peak"]
        if "exponent" in row:
            line[f"exponent to {row['size_px']} px"] = row["exponent"]
    return list(table.values())


def condense_best(rows: Rows) -> Rows:
    """Return ours beside the fastest of native, timm and plain code at equal work, at each size."""
    columns = ("dtype", "size_px", "batch", "best of equal work", "times as fast as that")
    return [{column: row[column] for column in columns} for row in rows if "best of equal work" in row]


TABLES: dict[str, tuple[str, str, Callable[[Rows], Rows]]] = {
    "best_of_equal_work": ("inference", "speed", condense_best),
    "speed": ("inference", "speed", condense_speed),
    **{
        table: (case, table, lambda rows: rows)
        for case, tables in {
            "inference": ("memory",),
            "sizes": ("windows", "packed"),
            "int8": ("int8",),
            "stack": ("stack",),
            "training": ("training", "training_options"),
            "checkouts": ("checkouts",),
            "data": ("preprocessing", "data", "feature_cache"),
            "serving": ("serving",),
        }.items()
        for table in tables
    },
}
"""By the name of a table of the page: the case and the table of its results, and what makes its rows of theirs."""


def caption(result: Result) -> str:
    """Return what the numbers of a result depend on, in a line."""
    machine = result.machine
    where = ", ".join([*([machine["gpu"]] if "gpu" in machine else []), machine["processor"]])
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "timm") if name in machine)
    facts = "".join(f"; {fact_text(*fact)}" for fact in result.facts.items() if not isinstance(fact[1], list))
    return f"**{result.subject}**, {where}, {machine['threads']} threads, {machine['date']}; {versions}{facts}"


def fact_text(name: str, value: object) -> str:
    """Return a fact in words, such as `dtype float32` or `requests: answered 12,000, lost 0`."""
    if isinstance(value, Mapping):
        return f"{name}: " + ", ".join(fact_text(*each) for each in value.items())
    is_large = isinstance(value, int | float) and abs(value) >= LEAST_GROUPED
    return f"{name} {value:,.0f}" if is_large else f"{name} {value}"


def build_table(name: str) -> str:
    """Return a table of the page with its captions: one for each subject and machine, without rows that are gone.

    Facts that consist of rows have a table of their own.
    """
    case, table, condense = TABLES[name]
    parts = []
    for result in load_results(RESULTS / f"{case}.jsonl"):
        if result.table == table:
            rows = [row for row in result.rows if not row.get("is_gone")]
            parts += [caption(result), table_of(condense(rows))]
            parts += [f"{fact}:\n\n{table_of(rows)}" for fact, rows in result.facts.items() if isinstance(rows, list)]
    return "\n\n".join(parts)


def fill(text: str) -> str:
    """Return the page's text with the tables of the stored results."""
    return MARKED.sub(lambda mark: f"{mark[1]}\n{build_table(mark[2])}\n\n{mark[3]}", text)


def write_page() -> None:
    """Write the page's tables anew."""
    write_text(PAGE, fill(PAGE.read_text(encoding="utf-8")))
    print(f"Wrote {PAGE}.")
