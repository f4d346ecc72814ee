"""The files of the data set: which rows are in which, and how one is written whole or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foundation.files import move_into_place, one_line_errors, scratch_folder


if TYPE_CHECKING:
    import pyarrow

FOLDER = "data"
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


def write_shard(path: Path, tables: Iterable[pyarrow.Table]) -> None:
    """Write a file from tables of the same columns, at least one; what raises while they are made leaves no file.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    from pyarrow.parquet import ParquetWriter

    with scratch_folder(path.parent) as scratch:
        place, groups = scratch / path.name, _groups(tables)
        first = next(groups)
        with one_line_errors(path):
            writer = ParquetWriter(place, first.schema, compression="zstd")
        with writer:
            for group in itertools.chain([first], groups):
                with one_line_errors(path):
                    writer.write_table(group)
        with one_line_errors(path):
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


def count_rows(path: Path) -> int:
    """Return how many rows a file has, which its last bytes say."""
    from pyarrow.parquet import read_metadata

    return read_metadata(path).num_rows


def read_columns(path: Path, names: list[str]) -> Iterator[pyarrow.Table]:
    """Yield some columns of a file, one group of rows after the other."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=names)
