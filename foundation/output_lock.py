"""One run at a time in an output folder, and in no folder that holds what somebody else made."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from foundation.errors import UserError, first_few
from foundation.files import TEMPORARY_PREFIX, write_text
from foundation.ranks import on_first_rank


LOCK = ".lock"
RUN_FILE = "run.txt"
"""Names the command that began a folder, whose files it may replace and remove."""
_MAX_NAMED = 4


def check_run_folder(output: Path, command: str) -> None:
    """Refuse a folder that is neither new or empty nor was begun by the same command.

    Args:
        output: Folder of a run.
        command: For example "training.distill".

    Raises:
        ValueError: If it holds something else.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`output` must be a folder, got the file {str(output)!r}. Name another one.")
    path = output / RUN_FILE
    found = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None
    if found == command:
        return
    leftover = (LOCK, f"{TEMPORARY_PREFIX}{RUN_FILE}-")  # of a run that was killed as it began
    names = os.listdir(output) if output.exists() else []
    entries = sorted(name for name in names if not name.startswith(leftover))
    if not entries:
        return
    held = first_few(entries, _MAX_NAMED) if found is None else f"a run of {found[:40]!r}"
    raise ValueError(
        f"`output` must be a new folder, an empty one or one that {command} began, got {str(output)!r}, which holds "
        f"{held}. Name another one. If {command} did begin it, write {command!r} into {str(path)!r}."
    )


@contextmanager
def sole_run(output: Path, command: str | None = None) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be; rank 0 does it for all ranks.

    The system gives the lock back when the process dies, however it does, so none is ever stale.

    Args:
        output: Folder of a run.
        command: What began the folder, which says so from then on; None where the command itself tells its folders.

    Raises:
        UserError: On every rank, if another process has the folder.
        ValueError: As `check_run_folder`.
    """
    with ExitStack() as stack:

        def lock() -> None:
            if command is not None:
                check_run_folder(output, command)
            stack.enter_context(_locked(output))
            if command is not None and not (output / RUN_FILE).is_file():
                write_text(output / RUN_FILE, f"{command}\n")
                stack.callback(_take_back, output)

        on_first_rank(lock)
        yield


def _take_back(output: Path) -> None:
    """Remove the file that names the command where nothing else has been written."""
    if set(os.listdir(output)) == {LOCK, RUN_FILE}:
        (output / RUN_FILE).unlink()


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another run is at work in {str(output)!r}. Wait until it ends or stop it, or give another --output."
        ) from error
    try:
        yield
    finally:
        (output / LOCK).unlink(missing_ok=True)  # before the release: whoever has opened it meanwhile tries again
        with suppress(OSError):  # unless it is empty
            output.rmdir()
        lock.release()
