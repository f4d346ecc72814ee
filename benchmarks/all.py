"""Measures how fast the network, its training and its tools are, beside their peers, and writes the tables of the page.

    python -m benchmarks.all [--only inference,page] [--device cuda] [--quick]

`inference` one image, beside transformers' RADIO, timm, plain code and other encoders; `sizes` windows and packs;
`int8` linear layers in 8 bits; `stack` one pass for three teachers; `training` the step beside other trainers, and what
its options cost; `kernels` the kernel starts of a step of the large recipes; `checkouts` the step of another checkout
(`--against`); `data` from files to pixels; `serving` a server under load; `page`
docs/explanation/benchmarks.md. Several cases run in a process each, one after the other; one that fails is reported and
the others go on. On a GPU `inference`, `sizes`, `stack` and `training` run. Results go to `benchmarks/results/`, those
of quick runs to `runs/benchmarks-quick/`, where they replace nothing.

The page's tables are between `<!-- table: NAME -->` and `<!-- end -->`; all around them is written by hand.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
LEAST_GROUPED = 10_000
"""Numbers from here on have commas between thousands, and no fraction."""
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


def condense_packed(rows: Rows) -> Rows:
    """Return one row for each data type and set of images: how many times as fast a pack is as each other way."""
    table: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        line = table.setdefault((row["dtype"], row["images"]), {"dtype": row["dtype"], "images": row["images"]})
        if row["way"] == "ours, packed":
            line["ours, packed: ms"] = row["ms"]
        else:
            line[row["way"]] = row["ours, packed, is times as fast"]
    return list(table.values())


def choose(*columns: str) -> Callable[[Rows], Rows]:
    """Return a function that keeps these columns of a table."""
    return lambda rows: [{column: row[column] for column in columns if column in row} for row in rows]


TABLES: dict[str, tuple[str, str, Callable[[Rows], Rows]]] = {
    "best_of_equal_work": ("inference", "speed", condense_best),
    "speed": ("inference", "speed", condense_speed),
    "windows": (
        "sizes",
        "windows",
        choose("dtype", "size_px", "window", "ms", "times as fast as global", "Amdahl limit"),
    ),
    "packed": ("sizes", "packed", condense_packed),
    "int8": (
        "int8",
        "int8",
        choose(
            "size_px",
            "float32, ms",
            *(
                f"{way}, times as fast"
                for way in ("int8", "compiled float32", "compiled int8", "ONNX float32", "ONNX int8")
            ),
            "int8, cosine",
        ),
    ),
    "stack": ("stack", "stack", choose("network", "size, px", "whole, ms", "TFLOP", "times as fast as all teachers")),
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
    "serving": ("serving", "serving", choose("in flight", "images a second", "median, ms", "95 %, ms")),
}
"""By the name of a table on the page: case and table of its results, and the function that makes its rows.

The page has what decides something; the stored results have all tables and columns."""


def caption(result: Result) -> str:
    """Return a line about the machine, versions and facts of a result, without the machine's peaks."""
    machine = result.machine
    where = ", ".join([*([machine["gpu"]] if "gpu" in machine else []), machine["processor"]])
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "timm") if name in machine)
    shown = {name: fact for name, fact in result.facts.items() if not isinstance(fact, list) and "/s" not in name}
    facts = "".join(f"; {fact_text(*fact)}" for fact in shown.items())
    return f"**{result.subject}**, {where}, {machine['threads']} threads, {machine['date']}; {versions}{facts}"


def fact_text(name: str, value: object) -> str:
    """Return a fact in words, such as `dtype float32` or `requests: answered 12,000, lost 0`."""
    if isinstance(value, Mapping):
        return f"{name}: " + ", ".join(fact_text(*each) for each in value.items())
    is_large = isinstance(value, int | float) and abs(value) >= LEAST_GROUPED
    return f"{name} {value:,.0f}" if is_large else f"{name} {value}"


def build_table(name: str) -> str:
    """Return a table of the page with a caption for each subject and machine, without rows of removed options.

    Facts that are rows get a table of their own.
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
    "sizes": Case("sizes", on_gpu=True),
    "int8": Case("int8"),
    "stack": Case("stack", on_gpu=True),
    "training": Case("training", on_gpu=True),
    "kernels": Case("kernels"),
    "checkouts": Case("training", "run_checkouts"),
    "data": Case("data"),
    "serving": Case("serving"),
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
