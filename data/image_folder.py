"""Folders of images as a training set, and the decision whether a folder holds images or shards."""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.errors import first_few
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import MIN_SIDE_PX, EncodedImage, SkippedImages, content_fingerprint
from modeling_radio.data.image_table import SPLITS, ImageTable, Split
from modeling_radio.image_processing_radio import FORMATS


logger = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
MIN_IMAGES_PER_SHARD = 100
"""Our choice: with so many images the shards among them are strays, with fewer the images only illustrate them."""

MAX_NAMED = 5
"""Number of left-out files that are named. Our choice."""

_IMAGES = "images"
TABLE_OF_WEIGHTS, FILE_NAME = "metadata.csv", "file_name"
"""Table of a folder of images and its column of their paths, as `datasets` names them."""
_TABLE_OF_IMAGES = "metadata.parquet"  # of `datasets`; it is about the images beside it
_NAME_OF_SPLIT = re.compile(
    r"([\w.]+-\d{5}-of-\d{5}|(train|training|validation|valid|val|dev|test|testing|eval|evaluation)[-_]\d+)\b.*"
)
"""Names of shards alone, as `train-00000-of-00001.parquet` on the Hub or `val_07.tar`."""


def find_shards(folder: Path) -> list[Path]:
    """Return the Parquet or the webdataset files below a folder; none for a folder of images.

    Tables beside webdataset files of the same names are about their samples, as img2dataset writes them, and left out.
    If a folder has several kinds of files, those with names of splits are read, or the images if they are very many;
    left-out files are logged. Hidden files do not count.

    Raises:
        ValueError: If it has several kinds of files and neither rule, or both, hold.
    """
    files = _files_by_kind(folder)
    named_by_tars = {path.with_suffix(".parquet") for path in files.get(".tar", ())}
    files = {kind: [path for path in found if path not in named_by_tars] for kind, found in files.items()}
    files = {kind: found for kind, found in files.items() if found}
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
    """Return whether `datasets` ignores a file or folder of that name."""
    return name.startswith((".", "__"))


def _files_by_kind(folder: Path) -> dict[str, list[Path]]:
    """Return images and shards below a folder by kind, sorted."""
    suffixes = dict.fromkeys(pillow_suffixes(), _IMAGES) | {suffix: suffix for suffix in BUILDERS}
    found: dict[str, list[Path]] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for path in (Path(root, name) for name in names if not is_hidden(name)):
            kind = suffixes.get(path.suffix if path.suffix in BUILDERS else path.suffix.lower())
            if kind is not None and path.name != _TABLE_OF_IMAGES and (kind == _IMAGES or path.is_file()):
                found.setdefault(kind, []).append(path)
    return {kind: sorted(paths) for kind, paths in found.items()}


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


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
_MEASURES = frozenset({".pfm"})
"""Suffixes that Pillow opens, but whose files hold measures such as depth."""

HELD_OUT_SHARE = 0.1  # our choice


class ImageFolder(ImageTable):
    """All images below a folder: random crops for training, centered ones when held out, or whole images.

    A tenth of the files is held out, chosen by a hash of their names. Files that are too small or cannot be read are
    skipped and named in the log; an image that only breaks while it is decoded is replaced by the next one.

    Args:
        folder: The folder; its sub-folders count too.
        size: Side of the square images, pixels; None for whole images of any shape.
        num_images: Length of the data set; None takes every file once.
        seed: Decides the random crops.
        split: "train" or "held_out".
        weights: Column of the folder's `metadata.csv` with the weights of the images; None without.

    Raises:
        ValueError: If the folder does not exist, has no usable image, or an image has no weight in that table.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int | None = None,
        num_images: int | None = None,
        seed: int = 0,
        split: Split = "train",
        weights: str | None = None,
    ) -> None:
        check_choice("split", split, SPLITS)
        skipped = SkippedImages()
        candidates = image_files(folder)
        usable = [path for path in candidates if skipped.check(EncodedImage(str(path), path))]
        if not usable:
            raise no_images_error(folder, len(skipped))
        if len(skipped):
            logger.warning("%s: skipped %d of %d images", folder, len(skipped), len(candidates))
        self.paths = _files_of_split(folder, usable, split)
        super().__init__(
            _Files(folder, self.paths, weights),
            size=size,
            num_images=num_images,
            seed=seed,
            is_centered=split == "held_out",
            skipped=skipped,
        )


class _Files:
    def __init__(self, folder: Path, paths: list[Path], weights: str | None) -> None:
        self.folder, self.paths = folder, paths
        self._weights = None if weights is None else self._read_weights(weights)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedImage:
        return EncodedImage(str(self.paths[index]), self.paths[index])

    def _names(self) -> list[str]:
        """Return the paths in the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self.paths]

    def weights(self) -> list[str] | None:
        return self._weights

    def _read_weights(self, column: str) -> list[str]:
        path = self.folder / TABLE_OF_WEIGHTS
        if not path.is_file():
            raise ValueError(f"`data.weights` {column!r} of a folder needs a file {str(path)!r}, which is missing.")
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            names = list(table.fieldnames or [])
            check_choice("data.weights", column, [name for name in names if name != FILE_NAME])
            found = {row[FILE_NAME]: row[column] for row in table} if FILE_NAME in names else {}
        missing = [name for name in self._names() if name not in found]
        if missing:
            raise ValueError(
                f"`data.weights` {column!r} must be in {str(path)!r} for each image, by its path in the folder in a "
                f"column `{FILE_NAME}`: {first_few(missing, MAX_NAMED)} are missing."
            )
        return [found[name] for name in self._names()]

    def fingerprint(self) -> str:
        """Return number and bytes of the files, a hash of their paths in the folder, and one of their contents."""
        names = self._names()
        num_bytes = [path.stat().st_size for path in self.paths]
        state = content_fingerprint(self.__getitem__, num_bytes, names)
        return f"{len(self)} files, {sum(num_bytes)} bytes, names {hash_of(dict.fromkeys(names))[:8]}, state {state}"


def files_fingerprint(files: Mapping[str, Path]) -> str:
    """Return number and bytes of files, a hash of their names, and one of names, sizes and times."""
    facts = {name: path.stat() for name, path in files.items()}
    state = hash_of({name: [fact.st_size, fact.st_mtime_ns] for name, fact in facts.items()})
    num_bytes = sum(fact.st_size for fact in facts.values())
    return f"{len(facts)} files, {num_bytes} bytes, names {hash_of(dict.fromkeys(facts))[:8]}, state {state[:16]}"


@functools.cache
def pillow_suffixes() -> frozenset[str]:
    """Return the suffixes of all images of `FORMATS`, `IMAGE_SUFFIXES` among them; MPO is a JPEG."""
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    return IMAGE_SUFFIXES | opened - _MEASURES


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, of all types that are read, sorted by path; the log counts other files.

    Raises:
        ValueError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"Image folder {str(folder)!r} does not exist.")
    images, others = [], Counter[str]()
    for path in folder.rglob("*"):
        if path.suffix.lower() in pillow_suffixes():
            images.append(path)
        elif path.is_file() and not is_hidden(path.name):
            others[path.suffix.lower() or path.name] += 1
    say_left_out(folder, others)
    return sorted(images)


def say_left_out(folder: Path, kinds: Mapping[str, int]) -> None:
    """Log how many files of each kind are left out, once for a folder."""
    if kinds:
        _warn_once(str(folder), first_few([f"{count} {kind}" for kind, count in sorted(kinds.items())], MAX_NAMED))


@functools.cache
def _warn_once(folder: str, kinds: str) -> None:
    logger.warning("%s: left out files of kinds that are not read here: %s", folder, kinds)


def no_images_error(folder: Path, num_skipped: int) -> ValueError:
    """Return the error for a folder without a usable image."""
    return ValueError(
        f"Image folder {str(folder)!r} has no usable image ({num_skipped} skipped). It needs files that end in "
        f"{', '.join(sorted(IMAGE_SUFFIXES))} or of another type that is read, of at least {MIN_SIDE_PX} px."
    )


def _files_of_split(folder: Path, paths: list[Path], split: Split) -> list[Path]:
    """Return the files of one split: the first tenth in the order of their names' hashes is held out."""
    by_hash = sorted(paths, key=lambda path: hashlib.sha256(str(path.relative_to(folder)).encode()).digest())
    num_held_out = max(1, round(HELD_OUT_SHARE * len(paths))) if len(paths) > 1 else 0
    chosen = set(by_hash[:num_held_out] if split == "held_out" else by_hash[num_held_out:])
    if not chosen:
        raise ValueError(f"Image folder {str(folder)!r} has one image only: none is left for the split {split!r}.")
    return [path for path in paths if path in chosen]
