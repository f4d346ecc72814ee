"""How every command ends: with its exit status, and one line on standard error about what went wrong."""

import importlib.util
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from foundation.errors import UserError
from foundation.interruption import Interrupted, OutOfTime, Signaled, TrainingDivergedError, ends_in_time


MAX_MESSAGE = 5000
"""Characters of an error that are shown; our choice, above all lists of names that a sound file leads to."""
USER_ERRORS = (ValueError, OSError, UserError, TrainingDivergedError)

KILLED_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")
"""Matches the error that torch raises when a data worker was killed."""
WORKER_IS_GONE = (
    "a data worker was killed by the system, most often for want of memory: the same command goes on, and needs less "
    "with fewer workers (`num_workers`)."
)

# How torch raises in the main process what a data worker has raised (`torch._utils.ExceptionWrapper`).
FROM_WORKER = re.compile(
    r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback.*^(?:[\w.]+\.)?\1: (?P<message>.*)",
    re.DOTALL | re.MULTILINE,
)


def run_command(
    name: str, run: Callable[[], None], *, show_traceback: bool, interrupted: str = "interrupted", extra: str = "tasks"
) -> int:
    """Run a command and return its exit status.

    Args:
        name: Of the command; begins the line of an error.
        run: Does the work and prints its results.
        show_traceback: Let errors pass, so that Python shows where they came from.
        interrupted: What to say after Ctrl-C where the interruption itself says nothing.
        extra: Optional dependency of `pyproject.toml` that has every package which the command may need.
    """
    try:
        with ends_in_time():
            run()
    except OutOfTime as end:
        print(end)  # as the user wanted it
        return 0
    except (Interrupted, KeyboardInterrupt) as interruption:
        number = interruption.number if isinstance(interruption, Interrupted | Signaled) else signal.SIGINT
        return _end(name, str(interruption) or interrupted, 128 + number)  # as shells count
    except ModuleNotFoundError as error:
        if show_traceback or error.name is None or not _is_absent(error.name):
            raise
        package = error.name.partition(".")[0]
        return _end(name, f'error: the package {package} is not installed: run `pip install -e ".[{extra}]"`', 1)
    except RuntimeError as error:
        if show_traceback or not KILLED_WORKER.match(str(error)):
            raise
        return _end(name, f"error: {WORKER_IS_GONE}", 1)
    except USER_ERRORS as error:
        if show_traceback:
            raise
        return _end(name, f"error: {' '.join(_message(error).split())}", 1)
    return 0


@contextmanager
def one_line_warnings(name: str) -> Iterator[None]:
    """Print warnings as one line each, without the place in the source that raised them.

    Args:
        name: Of the command; begins the line.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"{name}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _message(error: Exception) -> str:
    """Return what an error says, of a data worker's without the traceback that torch puts before it.

    A damaged file may have names of any length, which messages quote.
    """
    from_worker = FROM_WORKER.match(str(error))
    message = from_worker["message"] if from_worker else str(error)
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}... ({len(message):,} characters)"


def _is_absent(module: str) -> bool:
    """Return whether a module's whole package is missing: a missing part of one that is there is a bug."""
    return importlib.util.find_spec(module.partition(".")[0]) is None


def _end(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return status
