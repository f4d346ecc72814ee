"""Files of extracted features: the manifest of a data set, its shards and their checksums."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modeling_radio.core.errors import first_few
from modeling_radio.core.files import (
    LOCK,
    hash_file,
    move_into_place,
    one_line_errors,
    remove_abandoned,
    scratch_folder,
    write_text,
    write_through,
)
from modeling_radio.core.settings import differences


if TYPE_CHECKING:
    import pyarrow


MANIFEST = "extraction.json"
MAX_NAMED = 4
"""Our choice for the number of differences in a message."""
FOLDER = "data"
SUMS = "SHA256SUMS"
"""Checksums of all files in the format of `sha256sum`; during an extraction each rank writes a file of its own."""
AGAIN = "Remove it, and extract again: that writes what is missing."
GROUP_BYTES = 64 << 20
"""Our choice for a row group: readers hold one in memory."""


def begin(output: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a new data set, or compare it with that of an unfinished one.

    A data set without any rows is begun anew: a wrong setting may have stopped it.

    Args:
        output: Folder of the data set.
        facts: Plain data: settings, model and images.

    Raises:
        ValueError: If `output` holds other files or another data set.
    """
    held = {path.name for path in output.rglob("*")} if output.is_dir() else set()
    if not output.exists() or (output.is_dir() and held <= {MANIFEST, FOLDER, LOCK}):
        write_text(output / MANIFEST, json.dumps(facts, indent=2) + "\n")
    elif not (output / MANIFEST).is_file():
        raise ValueError(
            f"`output` must be a new folder or a data set that was begun, got {str(output)!r}, which holds "
            "something else. Name another."
        )
    found = differences(read_manifest(output), json.loads(json.dumps(facts)))
    if found:
        raise ValueError(
            f"`output` must be a new folder or one that was begun with the same settings, weights and images, got "
            f"{str(output)!r} with other ones ({first_few(found, MAX_NAMED)}). Name another, or give the old ones."
        )
    remove_abandoned(output / FOLDER)


def read_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest of a data set.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    try:
        facts = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        if not {"settings", "images", "source", "model"} <= facts.keys():
            raise ValueError(f"{MANIFEST} lacks entries")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(output)!r} is no data set that `radio extract` wrote: {error}.") from error
    return facts


class Shard(NamedTuple):
    """A file of rows.

    Attributes:
        split: Name of the split.
        start: First row.
        end: Row after the last.
        path: Path in the data set's folder.
    """

    split: str
    start: int
    end: int
    path: str


def plan_shards(lengths: Mapping[str, int], images_of_shard: int) -> list[Shard]:
    """Return all files, the same for any number of ranks and interruptions.

    Args:
        lengths: Number of images of each split.
        images_of_shard: Images of each file but the last of a split.
    """
    shards = []
    for split, length in lengths.items():
        starts = range(0, length, images_of_shard)
        for number, start in enumerate(starts):
            path = f"{FOLDER}/{split}-{number:05d}-of-{len(starts):05d}.parquet"
            shards.append(Shard(split, start, min(start + images_of_shard, length), path))
    return shards


def missing_shards(output: Path, shards: list[Shard]) -> list[Shard]:
    """Return the files that do not exist; an existing file is complete."""
    return [shard for shard in shards if not (output / shard.path).is_file()]


def write_shard(path: Path, tables: Iterable[pyarrow.Table], sums: Path | None = None) -> None:
    """Write a file from tables of the same columns, at least one; if computing them raises, no file is left.

    Args:
        path: File to write.
        tables: Rows of the file.
        sums: File to which its checksum is added; no other process writes it.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    from pyarrow.parquet import ParquetWriter

    with scratch_folder(path.parent) as scratch:
        temporary, groups = scratch / path.name, _groups(tables)
        first = next(groups)
        with one_line_errors(path):
            writer = ParquetWriter(temporary, first.schema, compression="zstd", write_page_checksum=True)
        with writer:
            for group in itertools.chain([first], groups):
                with one_line_errors(path):
                    writer.write_table(group)
        with one_line_errors(path):
            if sums is not None:  # before the file has its name, so that every file has one
                with sums.open("a", encoding="utf-8") as file:
                    file.write(f"{hash_file(temporary)}  {FOLDER}/{path.name}\n")
                write_through(sums)
            move_into_place(temporary, path)


def _groups(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Join tables to row groups of about `GROUP_BYTES`."""
    from pyarrow import concat_tables

    waiting: list[pyarrow.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.nbytes for each in waiting) >= GROUP_BYTES:
            yield concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield concat_tables(waiting).combine_chunks()


def read_sums(output: Path) -> dict[str, set[str]]:
    """Return the checksums of each file of a data set; several if it was written again."""
    sums: dict[str, set[str]] = {}
    for path in output.glob(f"{SUMS}*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            sums.setdefault(name, set()).add(digest)
    return sums


def read_columns(path: Path, names: list[str]) -> Iterator[pyarrow.Table]:
    """Yield some columns of a file, one group of rows after the other.

    Raises:
        ValueError: If the file is damaged.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table, wanted = file.read_row_group(group, columns=names), file.metadata.row_group(group).num_rows
                if table.num_rows != wanted:  # the checksum of a page does not cover its number of rows
                    raise OSError(f"it has {table.num_rows} of {wanted} rows")
                yield table
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"{str(path)!r} cannot be read: {reason}. {AGAIN}") from error
