"""Files of extracted features: the manifest of a data set, its shards and their checksums."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from modeling_radio.core.errors import first_few
from modeling_radio.core.files import hash_file, one_line_errors
from modeling_radio.core.settings import differences
from modeling_radio.extraction.claims import WORK
from modeling_radio.extraction.settings import SourceSettings, StorageSettings
from modeling_radio.extraction.store import Store


if TYPE_CHECKING:
    import pyarrow


MANIFEST = "extraction.json"
MAX_NAMED = 4
"""Our choice for the number of differences in a message."""
FOLDER = "data"
SUMS = "SHA256SUMS"
"""Checksums of all files except the card, which users may edit, in the format of `sha256sum`. During an extraction each
worker writes checksum files of its own."""
LINES_OF_SUMS = 1000
"""Our choice of lines for each of them: the last one is written again with each line."""
NUM_READERS = 16
"""Our choice of files whose numbers of rows are read at once: on object stores each takes a request or two."""
AGAIN = "Remove it, and extract again: that writes what is missing."
GROUP_BYTES = 64 << 20
"""Our choice for a row group: readers hold one in memory."""


class _ManifestSource(BaseModel):
    name: str
    hub_id: str | None


class _ManifestImages(BaseModel):
    state: str


class _ListedImages(_ManifestImages):
    number: int = Field(gt=0, lt=2**63)


class _StreamedFiles(_ManifestImages):
    files: int = Field(gt=0, lt=2**63)


class RowSettings(SourceSettings, StorageSettings):
    """Settings that decide the rows, as a manifest has them."""

    data: str = ""


class _Manifest(BaseModel):
    """Types of the fields that are read; the manifest may be a stranger's."""

    settings: dict[str, Any]
    source: _ManifestSource
    model: dict[Literal["weights and processor"], str] = Field(min_length=1)
    images: dict[Annotated[str, Field(pattern=r"^\w+$")], _ListedImages | _StreamedFiles] = Field(min_length=1)


def check_folder(store: Store) -> None:
    """Refuse a folder that holds something else than a data set, and an address that is not one of an object store.

    Raises:
        ValueError: If the store is such a folder or address.
    """
    store.check_writable()
    is_file = store.folder is not None and store.folder.is_file()
    names = set(store.names())
    if is_file or (MANIFEST not in names and not names <= {FOLDER, WORK}):
        raise ValueError(
            f"`output` must be a new folder or a data set that was begun, got {str(store)!r}, which holds "
            "something else. Name another."
        )


def begin(store: Store, facts: Mapping[str, Any], *, others: bool = False) -> None:
    """Write the manifest of a new data set, or compare it with that of an unfinished one.

    A data set without any rows at which nobody works is begun anew: a wrong setting may have stopped it.

    Args:
        store: Folder of the data set.
        facts: Plain data: settings, model and images.
        others: Whether other workers are at work in it.

    Raises:
        ValueError: If it is another data set.
    """
    is_new = set(store.names()) <= {MANIFEST, FOLDER, WORK} and not store.names(FOLDER) and not others
    if is_new or not store.exists(MANIFEST):
        store.write(MANIFEST, (json.dumps(facts, indent=2) + "\n").encode())
    found = differences(read_manifest(store), json.loads(json.dumps(facts)))
    if found:
        raise ValueError(
            f"`output` must be a new folder or one that was begun with the same settings, weights and images, got "
            f"{str(store)!r} with other ones ({first_few(found, MAX_NAMED)}). Name another, or give the old ones."
        )


def read_manifest(store: Store) -> dict[str, Any]:
    """Return the manifest of a data set.

    Raises:
        ValueError: If there is no manifest, or it cannot be read.
    """
    try:
        facts = json.loads(store.read(MANIFEST))
        RowSettings(**_Manifest.model_validate(facts).settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_data_set(store, f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _no_data_set(store, error) from error
    return facts


def _no_data_set(store: Store, reason: object) -> ValueError:
    return ValueError(f"{str(store)!r} is no data set that `radio extract` wrote: {reason}.")


class Shard(NamedTuple):
    """A file of rows.

    Attributes:
        split: Name of the split.
        start: First row; of a file that is still to be made from a streamed one its number.
        end: Row after the last.
        path: Path in the data set's folder.
    """

    split: str
    start: int
    end: int
    path: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.rpartition("/")[2]


def plan_shards(lengths: Mapping[str, int], images_of_shard: int) -> list[Shard]:
    """Return all files, the same for any number of workers and interruptions.

    Args:
        lengths: Number of images of each split.
        images_of_shard: Images of each file but the last of a split.
    """
    shards = []
    for split, length in lengths.items():
        starts = range(0, length, images_of_shard)
        for number, start in enumerate(starts):
            end = min(start + images_of_shard, length)
            shards.append(Shard(split, start, end, _path(split, number, len(starts))))
    return shards


def plan_streamed(split: str, num_files: int) -> list[Shard]:
    """Return a file for each of the files that are streamed; their numbers of rows are not known yet."""
    return [Shard(split, number, number + 1, _path(split, number, num_files)) for number in range(num_files)]


def with_rows(store: Store, shards: Iterable[Shard]) -> list[Shard]:
    """Return finished files with the numbers of their rows, which are read from the files."""
    from pyarrow.parquet import read_metadata

    def count(shard: Shard) -> int:
        with naming_damaged(store, shard.path), store.open(shard.path) as file:
            return read_metadata(file).num_rows

    shards, ends, counted = list(shards), Counter[str](), list[Shard]()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for shard, number in zip(shards, pool.map(count, shards), strict=True):
            start = ends[shard.split]
            ends[shard.split] += number
            counted.append(Shard(shard.split, start, start + number, shard.path))
    return counted


def shards_of(store: Store, facts: Mapping[str, Any]) -> list[Shard]:
    """Return the files of a data set with this manifest; those of a streamed one must be finished.

    Raises:
        ValueError: If files are missing.
    """
    streamed = {name: images["files"] for name, images in facts["images"].items() if "files" in images}
    lengths = {name: images["number"] for name, images in facts["images"].items() if name not in streamed}
    images_of_shard = RowSettings(**facts["settings"]).images_of_shard
    count = sum(streamed.values()) + sum(-(-length // images_of_shard) for length in lengths.values())
    done, shards, of_streams = done_shards(store), list[Shard](), list[Shard]()
    num_missing = count - len(done)
    if num_missing <= 0:  # else the manifest may name more than memory holds
        shards = plan_shards(lengths, images_of_shard)
        of_streams = list(itertools.chain.from_iterable(plan_streamed(*each) for each in streamed.items()))
        num_missing = sum(shard.path not in done for shard in (*shards, *of_streams))
    if num_missing:
        raise ValueError(
            f"`folder` must be a whole data set, got {str(store)!r}, which lacks {num_missing} of {count} files. "
            "Extract the rest first with `radio extract`."
        )
    return shards + with_rows(store, of_streams)


def _path(split: str, number: int, count: int) -> str:
    return f"{FOLDER}/{split}-{number:05d}-of-{count:05d}.parquet"


def done_shards(store: Store) -> set[str]:
    """Return the paths of the files that exist; an existing file is complete."""
    return {f"{FOLDER}/{name}" for name in store.names(FOLDER)}


class Sums:
    """Checksums of the files that a worker wrote, in files of its own.

    Args:
        store: Folder of the data set.
        worker: Name of the worker.
    """

    def __init__(self, store: Store, worker: str) -> None:
        self.store, self.worker = store, worker
        self._part, self._lines = 0, list[str]()

    def add(self, name: str, digest: str) -> None:
        """Write the checksum of a file."""
        if len(self._lines) == LINES_OF_SUMS:
            self._part, self._lines = self._part + 1, []
        self._lines.append(f"{digest}  {name}\n")
        self.store.write(f"{SUMS}-{self.worker}-{self._part}", "".join(self._lines).encode())


def write_shard(store: Store, path: str, tables: Iterable[pyarrow.Table], sums: Sums | None = None) -> None:
    """Write a file from tables of the same columns, at least one; if computing them raises, no file is left.

    Args:
        store: Folder of the data set.
        path: Name of the file.
        tables: Rows of the file.
        sums: Takes its checksum.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    from pyarrow.parquet import ParquetWriter

    with store.writing(path, owner="" if sums is None else sums.worker) as temporary:
        groups = _groups(tables)
        first = next(groups)
        with one_line_errors(store.full_name(path)):
            writer = ParquetWriter(temporary, first.schema, compression="zstd", write_page_checksum=True)
        with writer:
            for group in itertools.chain([first], groups):
                with one_line_errors(store.full_name(path)):
                    writer.write_table(group)
        if sums is not None:  # before the file has its name, so that every file has one
            sums.add(path, hash_file(temporary))


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


def read_sums(store: Store) -> dict[str, set[str]]:
    """Return the checksums of each file of a data set; several if it was written again."""
    sums: dict[str, set[str]] = {}
    for part in (name for name in store.names() if name.startswith(SUMS)):
        for line in store.read(part).decode(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            sums.setdefault(name, set()).add(digest)
    return sums


def renew_sums(store: Store, digests: Mapping[str, str | None]) -> None:
    """Replace the checksums of some files of a finished data set; None removes one."""
    known = {name: next(iter(each)) for name, each in read_sums(store).items()}
    renewed = {name: digest for name, digest in {**known, **digests}.items() if digest is not None}
    store.write(SUMS, lines_of_sums(renewed))


def lines_of_sums(digests: Mapping[str, str]) -> bytes:
    """Return the content of a file of checksums."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def hash_in(store: Store, name: str) -> str:
    """Return the SHA-256 of a file of a data set."""
    with store.reading(name) as path:
        return hash_file(path)


def read_columns(store: Store, path: str, names: list[str]) -> Iterator[pyarrow.Table]:
    """Yield some columns of a file, one group of rows after the other.

    Raises:
        ValueError: If the file is damaged.
    """
    from pyarrow.parquet import ParquetFile

    checked = {"page_checksum_verification": True}
    with naming_damaged(store, path), store.open(path) as content, ParquetFile(content, **checked) as file:
        for group in range(file.num_row_groups):
            table, wanted = file.read_row_group(group, columns=names), file.metadata.row_group(group).num_rows
            if table.num_rows != wanted:  # the checksum of a page does not cover its number of rows
                raise OSError(f"it has {table.num_rows} of {wanted} rows")
            yield table


@contextmanager
def naming_damaged(store: Store, path: str) -> Iterator[None]:
    """Turn errors of Arrow and of the system into one line that names the Parquet file.

    Raises:
        ValueError: If the file cannot be read.
    """
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"{str(store.full_name(path))!r} cannot be read: {reason}. {AGAIN}") from error
