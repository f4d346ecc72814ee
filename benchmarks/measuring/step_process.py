"""Processes that run training steps when asked, so that trainers of different libraries take turns."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm


Timing = dict[str, float]


class StepProcess:
    """A process that answers every line "NUM_STEPS" of its input with a line of JSON, seconds per step by part.

    It prints one line more when it is ready. `benchmarks.measuring.steps` is such a program.

    Args:
        name: For errors.
        command: What is run.
        folder: Where.

    Raises:
        RuntimeError: If it ends before it answers; what it printed says why.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def time(self, num_steps: int) -> Timing:
        """Run steps; return seconds per step by part, "wall" being all of them."""
        assert self._process.stdin is not None
        print(num_steps, file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The steps of {self.name!r} ended with status {self._process.wait()}; see above.")
        return line


def take_step_turns(processes: Mapping[str, StepProcess], rounds: int, num_steps: int) -> dict[str, list[Timing]]:
    """Let processes run steps in turns, and end them; return the timings of every round by name.

    Args:
        processes: By name; they are warm.
        rounds: Turns of each.
        num_steps: Of a turn.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in processes}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, process in processes.items():
            timings[name].append(process.time(num_steps))
    for process in processes.values():
        process.close()
    return timings
