"""Runs training steps on request, so that trainers of different libraries and checkouts take turns.

    python steps.py RUN_DIR CHANGES...        in the root of a checkout: times the demo's steps

A program with steps prints a line of JSON when it is ready, and another one for every line "NUM_STEPS" of its input:
seconds per step by part. This file needs Python alone, since it also runs beside libraries that may be incompatible
with ours. Of the project it uses only what versions since 2026-11-30 have, so that it can time an older one:
`keep_freed_memory`, `load_recipe`, and `Distiller` with `build`, `train_step` and `parts`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


GPU_MEMORY = "GPU memory, MB"
"""Key of a timing."""


class StepTimer:
    """Runs steps of a distiller that is built, and sums the times of their parts.

    Args:
        distiller: The distiller; its student learns from the first step on.
    """

    def __init__(self, distiller: Any) -> None:
        self.distiller = distiller
        self.seconds = {"data": 0.0, "optimizer": 0.0, "average": 0.0}
        self.examples = self._timed_examples()
        distiller.parts.student.train()
        self._time(distiller.parts.optimizer, "step", "optimizer")
        self._time(distiller.parts.ema, "update_parameters", "average")

    def run(self, num_steps: int) -> dict[str, float]:
        """Return seconds per step: of the wall clock, of all cores together, and of each part of the wall clock.

        "passes" is the rest: forward and backward passes, losses, clipping.
        """
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        wait_for_gpu()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        for _ in range(num_steps):
            self.distiller.train_step(self.examples)
        memory = wait_for_gpu()
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        passes = wall - sum(self.seconds.values())
        seconds = {"wall": wall, "cpu": cpu, "passes": passes, **self.seconds}
        return {**{name: value / num_steps for name, value in seconds.items()}, **memory}

    def _timed_examples(self) -> Iterator[Any]:
        distiller = self.distiller
        last_step = distiller.recipe.schedule.num_steps
        examples = iter(distiller.parts.source.examples(lambda: distiller.parts.plan.steps(distiller.step, last_step)))
        while True:
            started = time.perf_counter()
            example = next(examples)
            self.seconds["data"] += time.perf_counter() - started
            yield example

    def _time(self, owner: Any, method: str, part: str) -> None:
        call: Callable = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **options)
            self.seconds[part] += time.perf_counter() - started
            return result

        setattr(owner, method, timed)


class Stepper:
    """Pauses a loop until a line of the input requests further steps, and prints their time.

    `end_step` is called after every step and waits for the next line, so that loops of other libraries need no change.
    The first steps, which set kernels up, do not count.

    Args:
        num_warm_up_steps: Steps before it is ready.
    """

    def __init__(self, num_warm_up_steps: int) -> None:
        self._replies, sys.stdout = sys.stdout, sys.stderr  # output of libraries goes to standard error
        self._left, self._asked, self._is_ready = num_warm_up_steps, num_warm_up_steps, False
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Count a step; after the last requested one print its time and wait for a line. Ends with the input."""
        self._left -= 1
        if self._left:
            return
        memory = wait_for_gpu()
        seconds = (time.perf_counter() - self._began) / self._asked
        print(json.dumps({"wall": seconds, **memory} if self._is_ready else {}), file=self._replies, flush=True)
        self._is_ready = True
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = self._asked = int(line)
        self._began = time.perf_counter()


def wait_for_gpu() -> dict[str, float]:
    """Wait for the GPU, if there is one; return the peak of its memory in MB."""
    import torch

    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    return {GPU_MEMORY: torch.cuda.max_memory_allocated() / 1e6}


def _cpu_seconds() -> float:
    import resource  # not on Windows

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def build(run_dir: str, *changes: str) -> StepTimer:
    """Return a timer of the steps of the demo's recipe with changes, in any version of the project."""
    from modeling_radio.training.distillation.cpu import keep_freed_memory
    from modeling_radio.training.distillation.trainer import Distiller
    from modeling_radio.training.recipes.recipe import load_recipe

    keep_freed_memory()  # as `Distiller.run` does
    distiller = Distiller(load_recipe("demo", changes), Path(run_dir))
    distiller.build()
    return StepTimer(distiller)


def serve_steps(build_timer: Callable[[], tuple[StepTimer, dict[str, float]]]) -> None:
    """Build a timer, print what it comes with, and time steps until the input ends; nothing else is printed."""
    replies, sys.stdout = sys.stdout, sys.stderr
    timer, facts = build_timer()
    print(json.dumps(facts), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(timer.run(int(line))), file=replies, flush=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # instead of this folder: transformers asks whether there is a package `kernels`
    serve_steps(lambda: (build(*sys.argv[1:]), {}))
