"""One run at a time in an output folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foundation.errors import UserError
from foundation.ranks import on_first_rank


LOCK = ".lock"


@contextmanager
def sole_run(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be; rank 0 does it for all ranks.

    The system gives the lock back when the process dies, however it does, so none is ever stale.

    Raises:
        UserError: On every rank, if another process has the folder.
    """
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(_locked(output))

        on_first_rank(lock)
        yield


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
        lock.release()
