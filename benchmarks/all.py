"""Runs the benchmarks inference, stack, int8, preprocessing, loading and training, and writes the page of all results.

    python -m benchmarks.all [--device cuda] [--quick] [--student FOLDER] [--parts inference,page]

The page also has results of `checkouts`, `training_options`, `serving`, `feature_cache` and `data`, which are run by
hand. Each benchmark runs in a process of its own, one after the other; one that fails is told and the others go on. No
data set is needed. By estimate they take about an hour on two cores, 17 minutes of it `inference`, and with `--quick` a
quarter of that; on a GPU less than ten minutes, which nobody has tried yet. What each took is printed. A quick look
writes no page, and its results to `runs/benchmarks-quick/`, so that it replaces nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from benchmarks.measuring.results import FOLDER_VARIABLE, QUICK_RESULTS
from benchmarks.measuring.settings import DeviceSettings
from benchmarks.pages.page import write_page
from foundation.command_line import Command
from foundation.errors import UserError
from foundation.fields import OneOf


class Part(NamedTuple):
    """A benchmark.

    Attributes:
        cpu: Its arguments on a CPU; None where it is for GPUs.
        cuda: On a GPU; None where a GPU has no part in it.
        quick: Further arguments of a quick look.
        takes_student: Whether it measures what a trained student loses.
    """

    cpu: tuple[str, ...] | None
    cuda: tuple[str, ...] | None
    quick: tuple[str, ...] = ()
    takes_student: bool = False

    def arguments(self, settings: "AllSettings") -> list[str] | None:
        """Return the arguments on a device; None where it does not run there."""
        own = self.cuda if settings.device == "cuda" else self.cpu
        if own is None:
            return None
        student = [f"--student={settings.student}"] if self.takes_student and settings.student is not None else []
        return [*own, *student, *(self.quick if settings.quick else ())]


GPU = ("--device=cuda",)
PARTS: dict[str, Part] = {
    "inference": Part((), (*GPU, "--dtypes=float32,bfloat16,float16"), ("--quick",), takes_student=True),
    "stack": Part((), GPU, ("--rounds=2",)),
    "int8": Part((), None, ("--no-onnx", "--no-compiled", "--sizes=224", "--window-px=512"), takes_student=True),
    "preprocessing": Part((), (), ("--rounds=2", "--budget-seconds=0")),
    "loading": Part((), None, ("--preset=radio_v2.5-b", "--rounds=2", "--caches=warm")),
    "training": Part((), None, ("--rounds=2", "--steps=1")),
}
"""By the name of their module."""
PAGE = "page"


class AllSettings(DeviceSettings):
    """What shall run.

    Attributes:
        parts: Names of benchmarks, and "page" for the page of all stored results.
        student: Folder of a trained student for what needs one; without it these measurements are left out.
        quick: Whether to look only, with few rounds and small images. Results go to runs/benchmarks-quick, and there is
            no page.
    """

    parts: Annotated[list[str], OneOf((*PARTS, PAGE))] = [*PARTS, PAGE]
    student: Path | None = None
    quick: bool = False


def run(settings: AllSettings) -> None:
    """Run the parts in their order.

    Raises:
        UserError: In the end, if some failed.
    """
    settings.check_device()
    failed, environment = [], dict(os.environ)
    if settings.quick:
        environment[FOLDER_VARIABLE] = str(QUICK_RESULTS)
    for name in settings.parts:
        if name == PAGE:
            if not settings.quick:
                write_page()
            continue
        arguments = PARTS[name].arguments(settings)
        if arguments is None:
            continue
        began = time.perf_counter()
        print(f"python -m benchmarks.{name} {' '.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], env=environment, check=False)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; see above. All others are written.")


COMMAND = Command("benchmarks.all", __doc__.partition("\n")[0], AllSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
