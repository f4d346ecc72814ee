"""Runs a function in a new process, and tells what that took: time until it answers, and memory."""

import ctypes
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from foundation.machine.memory import peak_memory_mb


ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    """What a process left.

    Attributes:
        value: What the function returned.
        seconds: From the start of the process to its end, with all imports.
        peak_mb: The largest resident memory of the process, in MB.
    """

    value: Any
    seconds: float
    peak_mb: float


def run_anew(function: Callable[..., Any], *arguments: Any) -> Answer:
    """Run a function of a module in a new process of this Python.

    Args:
        function: A function that a module has under its own name.
        *arguments: JSON values; so must be what it returns.

    Raises:
        RuntimeError: If the process ends with an error, which it printed.
    """
    code = "import sys; from benchmarks.measuring.new_process import answer; answer(*sys.argv[1:])"
    module = function.__module__
    if module == "__main__":  # `python -m`
        module = sys.modules[module].__spec__.name
    command = [sys.executable, "-c", code, module, function.__qualname__, json.dumps(arguments)]
    began = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{function.__qualname__}{arguments} ended with status {done.returncode}; see above.")
    value, peak_mb = json.loads(done.stdout.splitlines()[-1])
    return Answer(value, seconds, peak_mb)


def answer(module: str, name: str, arguments: str) -> None:
    """In the new process: run the function and print its answer and the memory as JSON."""
    value = getattr(importlib.import_module(module), name)(*json.loads(arguments))
    print(f"\n{json.dumps([value, peak_memory_mb()])}", flush=True)


def peak_mb_of(call: Callable[[], object]) -> float:
    """Return the most memory that this process holds during a call, in MB, whatever it held before. For Linux."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is held; proc(5)
    call()
    return peak_memory_mb()
