"""How every command ends: with its exit status, and one line on standard error about what went wrong."""

import importlib.util
import sys
from collections.abc import Callable

from foundation.errors import UserError
from foundation.interruption import Interrupted, TrainingDivergedError


EXIT_INTERRUPTED = 130  # what shells give a command that Ctrl-C ended
USER_ERRORS = (ValueError, OSError, UserError, TrainingDivergedError)


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
        run()
    except (Interrupted, KeyboardInterrupt) as interruption:
        return _end(name, str(interruption) or interrupted, EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if show_traceback or error.name is None or not _is_absent(error.name):
            raise
        package = error.name.partition(".")[0]
        return _end(name, f'error: the package {package} is not installed: run `pip install -e ".[{extra}]"`', 1)
    except USER_ERRORS as error:
        if show_traceback:
            raise
        return _end(name, f"error: {' '.join(str(error).split())}", 1)
    return 0


def _is_absent(module: str) -> bool:
    """Return whether a module's whole package is missing: a missing part of one that is there is a bug."""
    return importlib.util.find_spec(module.partition(".")[0]) is None


def _end(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return status
