"""Writing files and folders so that a reader sees the old one or the new one, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


TEMPORARY_PREFIX = ".partial-"


class WriteError(OSError):
    """Something could not be written; the message is one line, and what was there before is intact."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            write(temporary)
            temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _write_error(path, error) from error


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then move it into place, instead of an older one there.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as folder:
            temporary, previous = Path(folder) / path.name, Path(folder) / "previous"
            temporary.mkdir()
            write(temporary)
            if path.exists():
                path.replace(previous)
            os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _write_error(path, error) from error


def remove_partial(folder: Path) -> None:
    """Remove what an earlier process that was killed left half-written in a folder."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_error(path: Path, error: Exception) -> WriteError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return WriteError(f"Cannot write {str(path)!r}: {reason}. What was saved before is intact.")
