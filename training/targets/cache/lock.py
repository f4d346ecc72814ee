"""Several runs that write one cache: each of its files is written by one of them, the others wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foundation.files import TEMPORARY_PREFIX, remove_partial
from foundation.interruption import Interrupted


logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
"""Our choice: how long a request to stop is left waiting."""

_SUFFIX = ".lock"


@contextmanager
def writing_turn(path: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other run writes a file of a cache; then it may be there.

    What a run left that was killed meanwhile is removed. The system frees the lock of a killed run; the lock's own file
    goes as soon as the file itself is there, for from then on nobody writes it.

    Raises:
        Interrupted: If asked to stop while waiting.
    """
    lock = FileLock(f"{path}{_SUFFIX}")
    _acquire(lock, path, should_stop)
    try:
        remove_partial(path.parent, _scratch_prefix(path))
        yield
    finally:
        if path.is_file():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def clear_up(folder: Path) -> None:
    """Remove what is left of runs that were killed after a file was in its place, but before their turn had ended."""
    for leftover in folder.glob(f"*{_SUFFIX}"):
        path = leftover.with_suffix("")
        if not path.is_file():
            continue
        lock = FileLock(leftover)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # that run is still at it
            continue
        remove_partial(folder, _scratch_prefix(path))
        leftover.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path, should_stop: Callable[[], bool]) -> None:
    is_told = False
    while True:
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_LOOKS)
            return
        except Timeout:
            if should_stop():
                raise Interrupted("Stopped while another run writes the feature cache.") from None
        if not is_told:
            logger.warning("Another run is writing %s: waiting for it.", path)
            is_told = True


def _scratch_prefix(path: Path) -> str:
    return f"{TEMPORARY_PREFIX}{path.name}-"
