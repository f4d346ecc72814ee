"""Which files a table may name in place of an image: those in the folder that the user gave."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path


_WILD = re.compile(r"[*?\[{]")
_ADDRESS = re.compile(r"\w+:/|::")


def check_named_file(name: str, source: str) -> None:
    """Refuse a file or an address that a table of strangers names: it would be read, or asked for, unseen.

    Args:
        name: The file.
        source: What the user called the data.

    Raises:
        ValueError: If it does not lie in the folder that the source is or whose files it names.
    """
    folder = _folder_of(source)
    if folder is None or _ADDRESS.search(name) or not Path(os.path.abspath(name)).is_relative_to(folder):
        raise ValueError(
            f"`data` {source!r} must hold its images, or name files in its folder, got {name!r:.200}, which lies "
            "elsewhere and is not read. Store the images in the table, or give the folder that holds both."
        )


def check_named_files(names: Iterable[str | None], source: str) -> None:
    """Refuse files as `check_named_file` does; None stands for an image in the table itself."""
    for name in names:
        if name is not None:
            check_named_file(name, source)


def _folder_of(source: str) -> Path | None:
    """Return the folder that a source is, or whose files it names; None of addresses and of what is no folder here."""
    if _ADDRESS.search(source):
        return None
    start = os.path.expanduser(_WILD.split(source)[0])
    plain = Path(start)
    folder = plain if plain.is_dir() else Path(os.path.dirname(start))
    is_path = plain.exists() or _WILD.search(source) is not None
    return Path(os.path.abspath(folder)) if is_path else None
