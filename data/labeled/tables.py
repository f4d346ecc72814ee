"""Labeled images as `datasets` tables by split: folders, Parquet, webdataset, saved data sets, the Hub.

Images whose file cannot be opened are left out before training starts.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image
from PIL.ImageFile import ImageFile
from tqdm import tqdm

from modeling_radio.checks_radio import did_you_mean
from modeling_radio.core.errors import first_few
from modeling_radio.core.ids import HUB_PREFIX
from modeling_radio.core.machine import num_processors
from modeling_radio.data.decoding import (
    MIN_SIDE_PX,
    EncodedImage,
    SkippedImages,
    UnusableImageError,
    check_header,
    load_image,
)
from modeling_radio.data.image_folder import (
    BUILDERS,
    MAX_NAMED,
    find_shards,
    is_hidden,
    pillow_suffixes,
    say_left_out,
)
from modeling_radio.data.labeled.folders import SPLIT_NAMES, TRAIN, SplitNames, Tables
from modeling_radio.data.sources import (
    ImageColumn,
    as_patterns,
    check_named_file,
    in_one_line,
    is_listed,
    shard_files,
)
from modeling_radio.image_processing_radio import to_eight_bits


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from datasets.features.features import FeatureType


Streams = dict[str, "IterableDataset"]
"""Streams by split, at least "train"."""

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "jpeg", "webp", "pixel_values")
"""Usual names of the column of images; the first that exists counts if none is given."""


def open_tables(source: str, read_folder: Callable[[Path], Tables], names: SplitNames = SPLIT_NAMES) -> Tables:
    """Open a source with random access; `datasets` copies files to its cache.

    Args:
        source: A folder; a `.parquet` or `.tar` file, or a pattern or a folder of them (see `find_shards`); a data set
            that `datasets` saved; or one of the Hub, `ORG/NAME`.
        read_folder: Reads a folder of image files, or anything else at the path.
        names: Possible names of each split.

    Returns:
        The tables by split, those for validation under one name; a source without splits is "train".

    Raises:
        ValueError: If nothing is there, it cannot be opened, it is a folder of images as well as of shards, or a table
            names images that lie elsewhere.
    """
    path = Path(source).expanduser()
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        from datasets import load_from_disk

        return _with_own_files(by_split(load_from_disk(str(path)), names), source)
    tables = _open_shards_or_hub(source, path, names, streaming=False)
    if tables is None:
        return read_folder(path)
    return tables if any(map(is_listed, tables.values())) else _with_own_files(tables, source)


def _with_own_files(tables: Tables, source: str) -> Tables:
    """Return tables; refuse those that name a file outside the folder of their source."""
    columns = ((table, column) for table in tables.values() for column in table.column_names)
    for name in itertools.chain.from_iterable(image_paths(*each) for each in columns):
        if name is not None:
            check_named_file(name, source)
    return tables


def open_streams(source: str, names: SplitNames = SPLIT_NAMES) -> Streams:
    """Open a source to be read in order, without a copy on the disk.

    Args:
        source: A `.parquet` or `.tar` file, or a pattern or a folder of them; or a data set of the Hub.
        names: Possible names of each split.

    Returns:
        The streams by split, as `open_tables` returns tables; each knows its columns.

    Raises:
        ValueError: If nothing is there, it cannot be opened, or it is laid out in another way.
    """
    path = Path(source).expanduser()
    streams = _open_shards_or_hub(source, path, names, streaming=True)
    if streams is None:
        raise ValueError(
            f"`streaming` needs {' or '.join(BUILDERS)} files or a data set of the Hub, got {source!r}, which is not "
            "copied anyway: leave `streaming` out."
        )
    for split, stream in streams.items():
        if stream.features is None:
            raise ValueError(f"{source!r} does not say which columns its split {split!r} has: convert it to Parquet.")
    return streams


def _open_shards_or_hub(source: str, path: Path, names: SplitNames, *, streaming: bool) -> dict[str, Any] | None:
    """Return tables or streams of Parquet or webdataset files or of a data set of the Hub; None of anything else."""
    files = shard_files(source)
    if files is not None:
        from datasets import load_dataset

        builder, patterns = BUILDERS[Path(files[0]).suffix], as_patterns(files)
        with in_one_line(f"`data` {source!r} cannot be opened"):
            return by_split(load_dataset(builder, data_files=patterns, streaming=streaming), names)
    if not path.exists():
        return _open_hub(source, names, streaming=streaming)
    shards = find_shards(path)
    return _load_folder(path, shards, source, names, streaming=streaming) if shards else None


def open_class_folders(path: Path, names: SplitNames = SPLIT_NAMES) -> Tables:
    """Open a folder that has a sub-folder of images for each class, with or without folders of splits above them.

    This function decides which folders are splits, because `datasets` takes a class called "train", or a file with such
    a word in its name, for a split, and leaves out all others.

    Raises:
        ValueError: If it has no class folders.
    """
    from datasets import DatasetDict, DownloadConfig, load_dataset

    config = DownloadConfig(download_desc="Listing images")  # its own words are "Downloading data"
    files = {split: _image_and_metadata_files(folder, path) for split, folder in split_folders(path, names).items()}
    with in_one_line(f"`data` {str(path)!r} has no images in class sub-folders, or metadata that cannot be read"):
        tables = load_dataset("imagefolder", data_files=files, drop_labels=False, download_config=config)
    return {str(split): table for split, table in cast(DatasetDict, tables).items()}


def split_folders(path: Path, names: SplitNames) -> dict[str, Path]:
    """Return the folder of each split, or the whole folder if its sub-folders are no splits.

    They are splits if all have a name of a split, or if one has that of training and another that of another split.
    """
    known = {name for split_names in (*names.values(), *SPLIT_NAMES.values()) for name in split_names}
    folders = {folder.name: folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name)}
    found = {
        split: next((folders[name] for name in theirs if name in folders), None) for split, theirs in names.items()
    }
    splits = {split: folder for split, folder in found.items() if folder is not None}
    others = sorted(folders.keys() - known)
    if splits and (not others or (TRAIN in splits and len(splits) > 1)):
        if others:
            logger.warning("%s: left out folders that are no splits: %s", path, first_few(others, MAX_NAMED))
        return splits
    return {TRAIN: path}


def _image_and_metadata_files(folder: Path, root: Path) -> list[str]:
    """Return the images of a split, and their metadata tables beside them or in the root, as patterns.

    The log counts files of other kinds, also images that are hidden, or of a kind that `datasets` does not list, such
    as AVIF.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    images, others = [], Counter[str]()
    for path in folder.rglob("*"):
        if any(map(is_hidden, path.relative_to(folder).parts)) or not path.is_file():
            others["hidden"] += path.suffix.lower() in pillow_suffixes() and path.is_file()
            continue
        if path.suffix.lower() in ImageFolder.EXTENSIONS:
            images.append(path)
        elif path.name not in ImageFolder.METADATA_FILENAMES:
            others[path.suffix.lower() or path.name] += 1
    say_left_out(folder, +others)
    tables = {path for name in ImageFolder.METADATA_FILENAMES for path in (*folder.rglob(name), root / name)}
    return as_patterns(sorted(str(path) for path in (*images, *tables) if path.is_file()))


def by_split(opened: Any, names: SplitNames = SPLIT_NAMES) -> dict[str, Any]:
    """Return splits under our two names; a lone table is the training split, "test" may stand for "validation".

    Args:
        opened: A table or stream of `datasets`, or several by name.
        names: Possible names of both; the first that exists counts.
    """
    if not isinstance(opened, dict):
        return {TRAIN: opened}
    tables = {str(split): table for split, table in opened.items()}
    found = {ours: next((name for name in theirs if name in tables), None) for ours, theirs in names.items()}
    return {ours: tables[name] for ours, name in found.items() if name is not None} or tables


def choose_column(
    role: str, given: str | None, candidates: Sequence[str], existing: Collection[str], source: str, purpose: str
) -> str:
    """Return the given column, or the first of the usual names that exists.

    Args:
        role: Content of the column; `ROLE_column` is the setting that names it.
        given: The column of that setting.
        candidates: Usual names, for a setting that is left out.
        existing: The existing columns.
        source: The user's name of the data, for messages.
        purpose: The task that needs the column, for messages.

    Raises:
        ValueError: If there is no such column; the message names the columns.
    """
    name = given or next((candidate for candidate in candidates if candidate in existing), None)
    if name is not None and name in existing:
        return name
    asked = f"no column {given!r}.{did_you_mean(str(given), existing)}" if given else "no column"
    raise ValueError(
        f"{source!r} has {asked} for the {role} of {purpose}; it has {', '.join(existing)}. Set `{role}_column`."
    )


def with_columns(table: Dataset, roles: dict[str, str]) -> Dataset:
    """Return a table of some columns alone, under the names of their roles; encoded images become images."""
    from datasets import Image

    table = cast("Dataset", table.with_format(None).select_columns(list(roles)))
    table = table.rename_columns({old: new for old, new in roles.items() if old != new})
    return table.cast_column("image", Image()) if _are_files(table.features["image"]) else table


def _are_files(feature: FeatureType) -> bool:
    """Return whether a column holds plain bytes of files, without a type that says they are images."""
    from datasets import Value

    if isinstance(feature, dict):
        return feature.get("bytes") in (Value("binary"), Value("large_binary"))
    return feature in (Value("binary"), Value("large_binary"))


def _open_hub(source: str, names: SplitNames, *, streaming: bool) -> dict[str, Any]:
    name = source.removeprefix(HUB_PREFIX)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"`data` {source!r} does not exist.")
    from datasets import load_dataset

    dataset, _, config = name.partition(":")
    try:
        return by_split(load_dataset(dataset, config or None, streaming=streaming), names)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`data` {source!r} is no folder or file here, and no data set of the Hub: {reason}"
        ) from error


def _load_folder(
    path: Path, shards: Sequence[Path], source: str, names: SplitNames, *, streaming: bool
) -> dict[str, Any]:
    """Open the files of one kind below a folder; folders or names such as `train-0` make splits."""
    from datasets import load_dataset

    suffix = shards[0].suffix
    with in_one_line(
        f"`data` {source!r} cannot be opened as {suffix} files, of which it has {shards[0].relative_to(path)}"
    ):
        if suffix == ".parquet":
            found = {split: as_patterns(map(str, files)) for split, files in _split_parquet(path, shards).items()}
            return by_split(load_dataset(BUILDERS[suffix], data_files=found, streaming=streaming), names)
        roots = {split: [path / name for name in theirs if (path / name).is_dir()] for split, theirs in names.items()}
        files = {
            split: [str(shard) for shard in shards if shard.is_relative_to(found[0])]
            for split, found in roots.items()
            if found
        }
        patterns = {split: as_patterns(found) for split, found in (files or {TRAIN: map(str, shards)}).items()}
        return by_split(load_dataset(BUILDERS[suffix], data_files=patterns, streaming=streaming))


def _split_parquet(path: Path, shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Return Parquet files by split, with the rules of `datasets` for a folder that holds nothing else."""
    relative_paths = {shard: shard.relative_to(path) for shard in shards}
    for split_of in (_split_of_hub, _split_of_folders, lambda relative: _split_of_words(relative.stem)):
        splits = {
            shard: split for shard, relative in relative_paths.items() if (split := split_of(relative)) is not None
        }
        if splits:
            left_out = [str(relative) for shard, relative in relative_paths.items() if shard not in splits]
            if left_out:
                logger.warning("%s: left out files of no split: %s", path, first_few(left_out, MAX_NAMED))
            return {split: [shard for shard in splits if splits[shard] == split] for split in splits.values()}
    return {TRAIN: list(shards)}


def _split_of_hub(relative: Path) -> str | None:
    match = re.fullmatch(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*", relative.as_posix())
    return match and match[1]


def _split_of_folders(relative: Path) -> str | None:
    return next((split for part in relative.parent.parts if (split := _split_of_words(part)) is not None), None)


def _split_of_words(text: str) -> str | None:
    """Return the split whose name is a word of a text; numbers separate words."""
    from datasets.data_files import SPLIT_KEYWORDS

    words = re.split(r"[-._ 0-9]+", text)
    return next((str(split) for split, known in SPLIT_KEYWORDS.items() if not set(words).isdisjoint(known)), None)


def damaged_rows(tables: Tables) -> dict[str, dict[int, tuple[str, str]]]:
    """Return the rows of tables whose images cannot be decoded, by split, each with the name of its image and why.

    Args:
        tables: See `readable_tables`.
    """
    damaged = {}
    for split, table in tables.items():
        damage = partial(_damage, encoded(table), f"{split} image")
        with ThreadPoolExecutor(num_processors()) as pool:  # Pillow decodes outside of Python's lock
            found = pool.map(damage, range(len(table)))
            shown = tqdm(found, desc=f"{split} images", total=len(table), leave=False, disable=None)
            damaged[split] = {index: why for index, why in enumerate(shown) if why is not None}
    return damaged


def _damage(table: Dataset, name: str, index: int) -> tuple[str, str] | None:
    """Return the name of the image in a row and why it, or another in the row, cannot be decoded; None if all can."""
    stored = table[index]["image"]
    shown = (stored.get("path") if isinstance(stored, dict) else None) or f"{name} {index}"
    try:
        image = read_row(table, index, name)["image"]
    except ValueError as error:
        return shown, str(error.__cause__)
    try:
        if isinstance(image, Image.Image):
            to_eight_bits(image)
    except ValueError as error:
        return shown, str(error)
    return None


def readable_tables(tables: Tables, damaged: Mapping[str, Mapping[int, tuple[str, str]]] | None = None) -> Tables:
    """Return tables without the images whose file cannot be opened; the log names each of them, and their number.

    Only the first bytes of files are read, and nothing of images that lie in the table itself. The log also tells how
    many images are very small.

    Args:
        tables: Tables by split, with images in the column `image`.
        damaged: Rows that are left out too (see `damaged_rows`).

    Raises:
        ValueError: If a split has no other images.
    """
    skipped, readable = SkippedImages(), {}
    for split, table in tables.items():
        kept, small, of_split = [], [], (damaged or {}).get(split, {})
        for index, path in enumerate(image_paths(table, "image")):
            if index in of_split:
                skipped.add(*of_split[index])
                continue
            try:
                if path is not None and check_header(EncodedImage(path, Path(path)), min_side_px=1) < MIN_SIDE_PX:
                    small.append(path)
            except UnusableImageError as error:
                skipped.add(str(path), error)
            else:
                kept.append(index)
        if small:
            shown = first_few(small, MAX_NAMED)
            logger.warning(
                "%d %s images have a side below %d px, which shows little: %s",
                len(small),
                split,
                MIN_SIDE_PX,
                shown,
            )
        if not kept and len(table):
            raise ValueError(f"None of the {len(table)} {split} images can be opened; the log names them.")
        if len(kept) < len(table):
            logger.warning(
                "left out %d of %d %s images, which cannot be opened", len(table) - len(kept), len(table), split
            )
        readable[split] = table if len(kept) == len(table) else cast("Dataset", table.select(kept))
    return readable


def image_paths(table: Dataset, column: str) -> list[str | None]:
    """Return the files of the images in a column; None where the table itself has the image, or there is none.

    Images in the table are not read, because they may be many gigabytes.
    """
    from datasets import Image

    feature = table.features[column]
    if not isinstance(feature, Image) and not (isinstance(feature, dict) and feature.keys() == {"bytes", "path"}):
        return [None] * len(table)
    paths: list[str | None] = []
    for chunk in table.data.column(column).chunks:
        is_there = zip(chunk.field("path").to_pylist(), chunk.field("bytes").is_null().to_pylist(), strict=True)
        paths += [path if is_alone else None for path, is_alone in is_there]
    order = table._indices
    return paths if order is None else [paths[row] for row in order.column(0).to_pylist()]


def encoded(table: Dataset) -> Dataset:
    """Return a table whose images `datasets` does not decode: it would open files of any format."""
    from datasets import Image

    for name, feature in table.features.items():
        if isinstance(feature, Image) and feature.decode:
            table = table.cast_column(name, Image(decode=False))
    return table


def read_row(table: Dataset, index: int, name: str) -> dict[str, Any]:
    """Return a row with its images decoded, each in the mode that it is stored in; `name` is for messages.

    Raises:
        ValueError: If an image cannot be decoded; the message names its file.
    """
    from datasets import Image as ImageFeature

    table, where = encoded(table), f"{name} {index}"
    row = dict(table[index])
    for column, feature in table.features.items():
        if isinstance(feature, ImageFeature) and row[column] is not None:
            image = ImageColumn("", column, is_listed=True).read(row, where)  # checked when the table was opened
            file = row[column].get("path")
            try:
                row[column] = opened = load_image(image)
                if isinstance(opened, ImageFile) and file:
                    opened.filename = file  # of an image in the table, for messages
            except UnusableImageError as error:
                shown = f" ({file})" if file else ""
                raise ValueError(
                    f"The images of {where}{shown} cannot be decoded: {error}. Replace the file, or remove it; "
                    "`radio finetune --skip-damaged` leaves it out."
                ) from error
    return row
