"""Decides whether a folder is one of images or of shards, which are Parquet files or webdataset archives."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from foundation.errors import first_few
from training.data.image_folder import pillow_suffixes


logger = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
MIN_IMAGES_PER_SHARD = 100
"""Our choice: so many images make the archives among them strays, and fewer are pictures about shards."""

MAX_NAMED = 5
"""Our choice: as many files that are left out are named."""

_IMAGES = "images"
_TABLE_OF_IMAGES = "metadata.parquet"  # of `datasets`; it is about the images beside it
_NAME_OF_SPLIT = re.compile(
    r"([\w.]+-\d{5}-of-\d{5}|(train|training|validation|valid|val|dev|test|testing|eval|evaluation)[-_]\d+)\b.*"
)
"""Names of shards alone, as `train-00000-of-00001.parquet` on the Hub or `val_07.tar`."""


def find_shards(folder: Path) -> list[Path]:
    """Return the Parquet or the webdataset files below a folder; none where it is one of images.

    Of a folder that has several kinds of files, those with names of splits are read, or images where they are very
    many; what is left out is logged. Hidden files do not count.

    Raises:
        ValueError: If it has several kinds of files and neither rule, or both, hold.
    """
    files = _files_by_kind(folder)
    shards = {kind: found for kind, found in files.items() if kind in BUILDERS}
    named = [kind for kind, found in shards.items() if any(_NAME_OF_SPLIT.fullmatch(path.name) for path in found)]
    num_images = len(files.get(_IMAGES, ()))
    has_many_images = num_images >= MIN_IMAGES_PER_SHARD * sum(map(len, shards.values()))
    if len(files) < 2:
        chosen = next(iter(files), _IMAGES)
    elif len(named) == 1 and not has_many_images:
        chosen = named[0]
    elif has_many_images and not named:
        chosen = _IMAGES
    else:
        raise _unclear(folder, files)
    left_out = [str(path.relative_to(folder)) for kind, found in files.items() if kind != chosen for path in found]
    if left_out:
        what = f"a folder of {_IMAGES if chosen == _IMAGES else f'{chosen} files'}, of which it has"
        shown = first_few(left_out, MAX_NAMED)
        logger.warning("%s: read as %s %d; left out %s", folder, what, len(files[chosen]), shown)
    return shards.get(chosen, [])


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is none of the user's, as for `datasets`."""
    return name.startswith((".", "__"))


def _files_by_kind(folder: Path) -> dict[str, list[Path]]:
    """Return images and shards below a folder, sorted, of each kind that there is."""
    suffixes = dict.fromkeys(pillow_suffixes(), _IMAGES) | {suffix: suffix for suffix in BUILDERS}
    found: dict[str, list[Path]] = {}
    for path in _walk(folder):
        kind = suffixes.get(path.suffix if path.suffix in BUILDERS else path.suffix.lower())
        if kind is not None and path.name != _TABLE_OF_IMAGES and (kind == _IMAGES or path.is_file()):
            found.setdefault(kind, []).append(path)
    return {kind: sorted(paths) for kind, paths in found.items()}


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(root, name) for name in names if not is_hidden(name))


def _unclear(folder: Path, files: dict[str, list[Path]]) -> ValueError:
    counts = ", ".join(
        f"{len(found)} {kind if kind == _IMAGES else f'{kind} files'} ({found[0].relative_to(folder)})"
        for kind, found in sorted(files.items(), reverse=True)
    )
    patterns = " or ".join(repr(f"{glob.escape(str(folder))}/**/*{kind}") for kind in sorted(files) if kind in BUILDERS)
    images = "; to read the images, move the other files out of the folder" if _IMAGES in files else ""
    return ValueError(
        f"Data folder {str(folder)!r} has several kinds of files: {counts}. To read shards, give a pattern such as "
        f"{patterns}{images}."
    )
