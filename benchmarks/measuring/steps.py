"""One checkout's share of `benchmarks.checkouts`: builds a run of where it stands, and times steps when asked.

    python steps.py RUN_DIR CHANGES...        in the checkout's root

Answers every line "NUM_STEPS" of its input with a line of JSON. Knows no more of the project than what all its versions
have, so that it can time an older one: `Distiller` with `_build`, `_train_step`, `optimizer`, `ema` and `source`.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class StepTimer:
    """Runs steps of a distiller that is built, and adds up what its parts take.

    Args:
        distiller: Its student learns from the first step on.
    """

    def __init__(self, distiller: Any) -> None:
        self.distiller = distiller
        self.seconds = {"data": 0.0, "optimizer": 0.0, "average": 0.0}
        self.examples = self._timed_examples()
        distiller.student.train()
        self._time(distiller.optimizer, "step", "optimizer")
        self._time(distiller.ema, "update_parameters", "average")

    def run(self, num_steps: int) -> dict[str, float]:
        """Return seconds per step: of the wall clock, of all cores together, and of each part of the wall clock.

        "passes" is what no other part is: forward and backward passes, losses, clipping.
        """
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        for _ in range(num_steps):
            self.distiller._train_step(self.examples)
            self.distiller.step += 1
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        passes = wall - sum(self.seconds.values())
        seconds = {"wall": wall, "cpu": cpu, "passes": passes, **self.seconds}
        return {name: value / num_steps for name, value in seconds.items()}

    def _timed_examples(self) -> Iterator[Any]:
        distiller = self.distiller
        last_step = distiller.recipe.schedule.num_steps
        examples = iter(distiller.source.examples(lambda: distiller.plan.steps(distiller.step, last_step)))
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


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(run_dir: str, *changes: str) -> None:
    """Build the run, say so, and answer until the input ends."""
    sys.path.insert(0, os.getcwd())
    try:
        from training.distillation.trainer import Distiller
    except ModuleNotFoundError:  # before the folder was made
        from training.trainer import Distiller  # pyrefly: ignore[missing-import]
    from training.recipe import load_recipe

    try:
        from training.distillation.memory import keep_freed_memory

        keep_freed_memory()  # as `Distiller.run` does
    except ModuleNotFoundError:  # not there yet
        pass
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the run prints is no answer
    distiller = Distiller(load_recipe("demo", changes), Path(run_dir))
    distiller._build()
    timer = StepTimer(distiller)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timer.run(int(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
