"""Writing an output so that a reader sees all of it or nothing."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_output(path: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` create a temporary file or folder beside `path`, then move it into place.

    Args:
        path: The file or folder to write.
        write: Creates the path that it is given; if it raises, nothing is left behind.
        overwrite: Replace what is there.

    Raises:
        ValueError: If `path` exists and `overwrite` is off.
    """
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        if path.exists():
            path.replace(Path(folder) / "previous")
        os.replace(temporary, path)


def write_file_beside(path: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Like `write_output`, for a writer that may put more files beside the one that it is given."""
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        write(Path(folder) / path.name)
        for written in sorted(Path(folder).iterdir(), key=lambda each: each.name == path.name):
            shutil.move(written, path.parent / written.name)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, before any long work.

    Raises:
        ValueError: If `path` exists and `overwrite` is off.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{str(path)!r} exists already: name another output or pass --overwrite.")
