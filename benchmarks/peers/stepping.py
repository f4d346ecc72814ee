"""What the programs of this folder share: they answer every line "NUM_STEPS" with seconds per step, as JSON.

It needs Python alone, since libraries that it runs in may not go together with ours.
"""

import json
import sys
import time
from collections.abc import Callable


class Stepper:
    """Lets a loop go on by as many steps as each line of the input asks for, and answers what a step took.

    `end_step` is called after every step, and waits there for the next line, so that loops of other libraries need no
    change. The first steps, which set kernels up, do not count.

    Args:
        num_warm_up_steps: Steps before it says that it is ready.
    """

    def __init__(self, num_warm_up_steps: int) -> None:
        self._answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
        self._left, self._asked, self._is_ready = num_warm_up_steps, num_warm_up_steps, False
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Count a step; after the last that was asked for, answer and wait for more. It ends with the input."""
        self._left -= 1
        if self._left:
            return
        seconds = (time.perf_counter() - self._began) / self._asked
        print(json.dumps({"wall": seconds}) if self._is_ready else "ready", file=self._answers, flush=True)
        self._is_ready = True
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = self._asked = int(line)
        self._began = time.perf_counter()


def run_steps(step: Callable[[], object], num_warm_up_steps: int) -> None:
    """Call a step again and again, as the input asks."""
    stepper = Stepper(num_warm_up_steps)
    while True:
        step()
        stepper.end_step()
