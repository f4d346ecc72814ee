"""Writing files and folders so that a reader sees the old one or the new one, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


TEMPORARY_PREFIX = ".partial-"


class WriteError(OSError):
    """Something could not be written; the message is one line, and what was there before is intact."""


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, before any long work.

    Raises:
        ValueError: If `path` exists and `overwrite` is off.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{str(path)!r} exists already. Name another output or pass --overwrite.")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, then move it into place; nothing is left behind if it raises.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    with _one_line_errors(path), scratch_folder(path.parent) as scratch:
        write(scratch / path.name)
        move_into_place(scratch / path.name, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_file` does."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then move it into place, instead of an older one there.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder)

    write_file(path, make)


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Like `write_file`, for a writer that may put more files beside the one that it is given; that one comes last.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    with _one_line_errors(path), scratch_folder(path.parent) as scratch:
        write(scratch / path.name)
        for written in sorted(scratch.iterdir(), key=lambda each: each.name == path.name):
            move_into_place(written, path.parent / written.name)


@contextmanager
def scratch_folder(parent: Path, prefix: str = TEMPORARY_PREFIX) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed in the end: what is finished in it can be moved into place."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as scratch:
        yield Path(scratch)


def move_into_place(finished: Path, path: Path) -> None:
    """Rename a finished file or folder of a scratch folder to its name, instead of what has that name.

    A file is replaced in one step. For a folder the older one steps aside into the scratch folder first, and back if
    the new one cannot follow. A folder is never replaced by a file.
    """
    aside = finished.with_name(f"{finished.name}.previous")
    if finished.is_dir() and path.exists():
        path.replace(aside)
    try:
        os.replace(finished, path)
    except OSError:
        if aside.exists():
            aside.replace(path)
        raise


def remove_partial(folder: Path, prefix: str = TEMPORARY_PREFIX) -> None:
    """Remove the scratch folders that an earlier process left behind when it was killed."""
    for leftover in folder.glob(f"{prefix}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises the second, save_file the third
        system_says = error.strerror if isinstance(error, OSError) else None
        reason = system_says or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WriteError(f"Cannot write {str(path)!r}: {reason}. What was saved before is intact.") from error
