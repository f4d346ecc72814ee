"""Measures how fast the network, its training and its tools are, beside their peers, and writes the tables of the page.

    python -m benchmarks.all [--only inference,page] [--device cuda] [--quick]

`inference` one image, beside transformers' RADIO, timm, plain code and other encoders; `training` the step beside other
trainers, and what its options cost; `kernels` the kernel starts of a step of the large recipes; `checkouts` the step of
another checkout (`--against`); `data` from files to pixels; `page`
docs/explanation/benchmarks.md. Several cases run in a process each, one after the other; one that fails is reported and
the others go on. On a GPU `inference` and `training` run. Results go to `benchmarks/results/`, those of quick runs to
`runs/benchmarks-quick/`, where they replace nothing.

The page's tables are between `<!-- table: NAME -->` and `<!-- end -->`; all around them is written by hand.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import transformers

from benchmarks.measuring import RESULTS, ROOT, MeasuringSettings, Result, Row, Rows, load_results, table_of
from modeling_radio.core.command_line import Command
from modeling_radio.core.errors import UserError
from modeling_radio.core.files import write_text
from modeling_radio.core.settings import OneOf


PAGE_FILE = ROOT / "docs" / "explanation" / "benchmarks.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = "page"


EQUAL_WORK = ("timm RADIO", "timm ViT", "plain code")
"""Networks that the page shows only where one of them is the fastest of those that do the same work as ours."""


def condense_speed(rows: Rows) -> Rows:
    """Return one row for each network, data type and batch: milliseconds, and in brackets the ratio to native."""
    table: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["contender"] not in EQUAL_WORK:
            network = row["contender"] + ("" if row["batch"] == 1 else ", full batch")
            line = table.setdefault((row["dtype"], network), {"dtype": row["dtype"], "network": network})
            line[f"{row['size_px']} px"] = f"{row['ms']:.0f} ({row['times as fast as native'].split()[0]})"
    return list(table.values())


def condense_best(rows: Rows) -> Rows:
    """Return ours beside the fastest of native, timm and plain code at equal work, at each size."""
    chosen = choose("dtype", "size_px", "batch", "best of equal work", "times as fast as that")
    return chosen([row for row in rows if "best of equal work" in row])


def choose(*columns: str) -> Callable[[Rows], Rows]:
    """Return a function that keeps these columns of a table."""
    return lambda rows: [{column: row[column] for column in columns if column in row} for row in rows]


TABLES: dict[str, tuple[str, str, Callable[[Rows], Rows]]] = {
    "best_of_equal_work": ("inference", "speed", condense_best),
    "speed": ("inference", "speed", condense_speed),
    "training": ("training", "training", choose("trainer", "step, ms", "images per second", "ours is times as fast")),
    "training_options": ("training", "training_options", choose("step", "CPU, ms", "more CPU", "more memory")),
    "kernels": (
        "kernels",
        "kernels",
        lambda rows: rows,
    ),
    "preprocessing": (
        "data",
        "preprocessing",
        choose(
            "size, px",
            "images",
            "ours, ms",
            *(f"times as fast as {peer}" for peer in ("transformers, torchvision", "transformers, PIL", "timm")),
        ),
    ),
    "data": ("data", "data", choose("format", "workers", "images/s")),
}
"""By the name of a table on the page: case and table of its results, and the function that makes its rows.

The page has what decides something; the stored results have all tables and columns."""


def caption(result: Result) -> str:
    """Return a line about the machine, versions and facts of a result, without the machine's peaks."""
    machine = result.machine
    where = ", ".join([*([machine["gpu"]] if "gpu" in machine else []), machine["processor"]])
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "timm") if name in machine)
    facts = "".join(f"; {name} {fact}" for name, fact in result.facts.items() if "/s" not in name)
    return f"**{result.subject}**, {where}, {machine['threads']} threads, {machine['date']}; {versions}{facts}"


def build_table(name: str) -> str:
    """Return a table of the page with a caption for each subject and machine, without rows of removed options."""
    case, table, condense = TABLES[name]
    parts = []
    for result in load_results(RESULTS / f"{case}.jsonl"):
        if result.table == table:
            rows = [row for row in result.rows if not row.get("is_gone")]
            parts += [caption(result), table_of(condense(rows))]
    return "\n\n".join(parts)


def fill(text: str) -> str:
    """Return the page's text with the tables of the stored results."""
    return MARKED.sub(lambda mark: f"{mark[1]}\n{build_table(mark[2])}\n\n{mark[3]}", text)


def write_page() -> None:
    """Write the page's tables anew."""
    write_text(PAGE_FILE, fill(PAGE_FILE.read_text(encoding="utf-8")))
    print(f"Wrote {PAGE}.")


class Case(NamedTuple):
    """A group of measurements.

    Attributes:
        module: Module of this package.
        function: Function that measures and reports.
        on_gpu: Whether it runs on a GPU too.
    """

    module: str
    function: str = "run"
    on_gpu: bool = False


CASES: dict[str, Case] = {
    "inference": Case("inference", on_gpu=True),
    "training": Case("training", on_gpu=True),
    "kernels": Case("kernels"),
    "checkouts": Case("training", "run_checkouts"),
    "data": Case("data"),
}


class AllSettings(MeasuringSettings):
    """Settings of a run of cases.

    Attributes:
        only: Names of cases, and "page" for the page's tables of all stored results; all by default.
    """

    only: Annotated[list[str], OneOf((*CASES, PAGE))] = [*CASES, PAGE]


def run(settings: AllSettings) -> None:
    """Run the cases in their order.

    Raises:
        UserError: In the end, if some failed.
    """
    settings.check()
    cases = [name for name in CASES if name in settings.only and (CASES[name].on_gpu or not settings.on_gpu)]
    failed = []
    if len(settings.only) == 1 and cases:
        transformers.utils.logging.disable_progress_bar()
        case = CASES[cases[0]]
        module = import_module(f"benchmarks.{case.module}")
        getattr(module, case.function)(settings)
        return
    for name in cases:
        began = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.all", f"--only={name}", *_words(settings)]
        print(" ".join(command[1:]), flush=True)
        done = subprocess.run(command, check=False)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        failed += [name] if done.returncode else []
    if PAGE in settings.only and not settings.quick:
        write_page()
    if failed:
        raise UserError(f"{', '.join(failed)} failed; see above. All others are written.")


def _words(settings: AllSettings) -> list[str]:
    """Return the command-line words for these settings without the cases."""
    given = settings.model_dump(mode="json", exclude={"only"}, exclude_defaults=True)
    return [f"{name}={json.dumps(value)}" for name, value in given.items()]


COMMAND = Command("benchmarks.all", __doc__.partition("\n")[0], AllSettings)


main = partial(COMMAND.run, run, extra="dev")


if __name__ == "__main__":
    sys.exit(main())
