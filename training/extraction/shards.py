"""Files of extracted features: their shards and the file that lists them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.errors import first_few
from core.files import (
    LOCK,
    hash_file,
    move_into_place,
    one_line_errors,
    remove_abandoned,
    scratch_folder,
    write_text,
    write_through,
)
from core.settings import differences


if TYPE_CHECKING:
    import pyarrow


MANIFEST = "extraction.json"
MAX_NAMED = 4
"""Our choice: as many differences are named."""


def begin(output: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a new data set, or compare it with that of one that was begun.

    One that has nothing but its manifest yet is begun anew: what stopped it may have been a wrong setting.

    Args:
        output: Folder of the data set.
        facts: Plain data: settings, model and images.

    Raises:
        ValueError: If `output` holds something else, or was begun with something else.
    """
    if _holds_at_most_a_manifest(output):
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
    """Return what a data set was begun with.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = output / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`output` must be a folder of training.extract, got {str(output)!r}: {error}.") from error
    if not isinstance(facts, dict) or not {"settings", "images", "source", "model"} <= facts.keys():
        raise ValueError(
            f"`output` must be a folder of training.extract, got {str(output)!r}, whose {MANIFEST} is none."
        )
    return facts


def _holds_at_most_a_manifest(output: Path) -> bool:
    if not output.exists():
        return True
    return output.is_dir() and {path.name for path in output.rglob("*")} <= {MANIFEST, FOLDER, LOCK}


def missing_shards(output: Path, shards: list[Shard]) -> list[Shard]:
    """Return the files that are not there; one that has its name is whole."""
    return [shard for shard in shards if not (output / shard.path).is_file()]


FOLDER = "data"
SUMS = "SHA256SUMS"
"""Checksums of all files, as `sha256sum --check` reads them; while they are written each rank has a file of its own."""
AGAIN = "Remove it, and extract again: that writes what is missing."
GROUP_BYTES = 64 << 20
"""Our choice for a group of rows: readers hold one in memory."""


class Shard(NamedTuple):
    """One file.

    Attributes:
        split: Whose rows it has.
        start: The first of them.
        end: The one after the last.
        path: Below the data set's folder.
    """

    split: str
    start: int
    end: int
    path: str


def plan_shards(lengths: Mapping[str, int], images_of_shard: int) -> list[Shard]:
    """Return all files, the same whoever writes them and however often that is stopped.

    Args:
        lengths: Number of images of each split.
        images_of_shard: In each file but the last of a split.
    """
    shards = []
    for split, length in lengths.items():
        starts = range(0, length, images_of_shard)
        for number, start in enumerate(starts):
            path = f"{FOLDER}/{split}-{number:05d}-of-{len(starts):05d}.parquet"
            shards.append(Shard(split, start, min(start + images_of_shard, length), path))
    return shards


def write_shard(path: Path, tables: Iterable[pyarrow.Table], sums: Path | None = None) -> None:
    """Write a file from tables of the same columns, at least one; what raises while they are made leaves no file.

    Args:
        path: File to write, in a folder of the data set's.
        tables: What it holds.
        sums: File to which its checksum is added, which no other process writes.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    from pyarrow.parquet import ParquetWriter

    with scratch_folder(path.parent) as scratch:
        place, groups = scratch / path.name, _groups(tables)
        first = next(groups)
        with one_line_errors(path):
            writer = ParquetWriter(place, first.schema, compression="zstd", write_page_checksum=True)
        with writer:
            for group in itertools.chain([first], groups):
                with one_line_errors(path):
                    writer.write_table(group)
        with one_line_errors(path):
            if sums is not None:  # before the file has its name, so that none is without
                with sums.open("a", encoding="utf-8") as file:
                    file.write(f"{hash_file(place)}  {FOLDER}/{path.name}\n")
                write_through(sums)
            move_into_place(place, path)


def _groups(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Join tables to groups of rows that are worth reading at once."""
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
    """Return the checksums that were written for each file of a data set: several where it was written again."""
    sums: dict[str, set[str]] = {}
    for path in output.glob(f"{SUMS}*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            sums.setdefault(name, set()).add(digest)
    return sums


def read_columns(path: Path, names: list[str]) -> Iterator[pyarrow.Table]:
    """Yield some columns of a file, one group of rows after the other.

    Raises:
        ValueError: If what is read is not what was written.
    """
    from pyarrow.parquet import ParquetFile

    with _damage_named(path), ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table, wanted = file.read_row_group(group, columns=names), file.metadata.row_group(group).num_rows
            if table.num_rows != wanted:  # a page says how many it has, which its checksum leaves out
                raise OSError(f"it has {table.num_rows} of {wanted} rows")
            yield table


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"{str(path)!r} cannot be read: {reason}. {AGAIN}") from error
