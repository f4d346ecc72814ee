"""How every command ends: with its exit status, and one line on standard error about what went wrong."""

import sys
from collections.abc import Callable

from foundation.errors import UserError
from foundation.interruption import Interrupted, TrainingDivergedError


EXIT_INTERRUPTED = 130  # what shells give a command that Ctrl-C ended
TASK_PACKAGES = ("datasets", "peft", "pycocotools", "scipy", "torchmetrics")
"""What our extra `tasks` installs beyond `train`; not every command needs it."""
USER_ERRORS = (ValueError, OSError, UserError, TrainingDivergedError)


def run_command(
    name: str, run: Callable[[], None], *, interrupted: str = "interrupted", show_traceback: bool = False
) -> int:
    """Run a command and return its exit status.

    Args:
        name: Of the command, which begins the line.
        run: Does the work and prints its results.
        interrupted: What to say after Ctrl-C where the interruption itself says nothing.
        show_traceback: Let errors pass, so that Python shows where they came from.
    """
    try:
        run()
    except (Interrupted, KeyboardInterrupt) as interruption:
        return _end(name, str(interruption) or interrupted, EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in TASK_PACKAGES or show_traceback:
            raise
        advice = 'run `pip install -e ".[tasks]"`'
        return _end(name, f"error: the package {error.name} is not installed: {advice}", 1)
    except USER_ERRORS as error:
        if show_traceback:
            raise
        return _end(name, f"error: {' '.join(str(error).split())}", 1)
    return 0


def read_seeds(text: str) -> list[int]:
    """Return the seeds that an option such as `--seeds 0,1,2` lists."""
    return [int(seed) for seed in text.split(",")]


def _end(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return status
