"""Measures how fast the network, its training and its tools are, beside their peers, and writes the tables of the page.

    python -m benchmarks.all [--only inference,page] [--device cuda] [--quick]

`inference` one image, beside transformers' RADIO, timm, plain code and other encoders; `sizes` windows and packs;
`int8` linear layers in 8 bits; `stack` one pass for three teachers; `training` the step beside other trainers, and what
its options cost; `checkouts` the step of another checkout (`--against`); `data` from files to pixels, and the feature
cache; `serving` a server under load; `page` docs/benchmarks.md. Several cases run in a process each, one after the
other; one that fails is told and the others go on. On a GPU `inference`, `sizes`, `stack` and `training` run.
Results go to `benchmarks/results/`, those of a quick look to `runs/benchmarks-quick/`, so that it replaces nothing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import transformers

from benchmarks.measuring import MeasuringSettings
from benchmarks.page import write_page
from core.command_line import Command
from core.errors import UserError
from core.settings import OneOf


class Case(NamedTuple):
    """A group of measurements.

    Attributes:
        module: Of this package.
        function: That measures and reports.
        on_gpu: Whether a GPU has a part in it.
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
    "checkouts": Case("training", "run_checkouts"),
    "data": Case("data"),
    "serving": Case("serving"),
}
PAGE = "page"


class AllSettings(MeasuringSettings):
    """Which cases are measured, and how.

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
    """Return the changes that make another process's settings these, but for its cases."""
    given = settings.model_dump(mode="json", exclude={"only"}, exclude_defaults=True)
    return [f"{name}={json.dumps(value)}" for name, value in given.items()]


COMMAND = Command("benchmarks.all", __doc__.partition("\n")[0], AllSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(run, arguments, extra="tasks,int8,serve")


if __name__ == "__main__":
    sys.exit(main())
