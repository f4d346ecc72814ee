"""The rows of a data set once more as a Lance data set for each split, with an index that is searched on the disk.

Lance is an engine of the user's (`pip install pylance`): it writes its data sets itself, also at addresses, and shows
each only when all of it is there.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np

from modeling_radio.core.files import WriteError
from modeling_radio.extraction.settings import ExtractionSettings
from modeling_radio.extraction.shards import Shard, read_columns
from modeling_radio.extraction.store import Store


logger = logging.getLogger(__name__)

FOLDER = "lance"
MIN_ROWS = 39 * 256
"""Rows that get an index: PQ has 256 centroids for each part of a vector, and faiss asks for 39 vectors for each
(`min_points_per_centroid`). Fewer are compared with all of them in milliseconds."""
DIMS_OF_PART = 8
"""Our choice of dimensions of each part of a vector, for which PQ stores a byte: parts of 16 miss more."""
NUM_PROBES = 20
"""Partitions that a search reads: LanceDB's default. Lance chooses their number: one for each 8,192 rows."""
REFINE_FACTOR = 30
"""Our choice: thirty times the wanted rows are compared by their stored vectors, which PQ only approximates. It found
all of the 10 nearest among 200,000 vectors in clusters, and .93 of them among noise, where a factor of 10 found .76."""


def check_lance(settings: ExtractionSettings) -> None:
    """Refuse the format if its package is not installed.

    Raises:
        ValueError: If it is.
    """
    if settings.format == "lance":
        _import_lance("format")


def write_lance(store: Store, shards: Sequence[Shard], columns: Sequence[str]) -> None:
    """Write the Lance data set of each split, and its indexes, where they are missing.

    Args:
        store: Folder of the data set.
        shards: All its files.
        columns: Columns of one vector for each image, which get an index.

    Raises:
        WriteError: If Lance cannot write, for example because it does not reach the address.
    """
    lance = _import_lance("format")
    for split in dict.fromkeys(shard.split for shard in shards):
        address, of_split = _address(store, split), [shard for shard in shards if shard.split == split]
        with _one_line_errors(address):
            if _exists(store, split):
                rows = lance.dataset(address)
            else:
                rows = lance.write_dataset(_batches(store, of_split), address)
                # A process that was killed while it wrote may have left parts.
                rows.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            number = rows.count_rows()
            if number < MIN_ROWS:
                logger.warning("%s: no index for %d rows, which are too few; searches are exact", address, number)
                continue
            for column in set(columns) - _indexed(rows):
                num_parts = rows.schema.field(column).type.list_size
                num_parts //= math.gcd(num_parts, DIMS_OF_PART)
                rows.create_index(column, "IVF_PQ", name=column, metric="cosine", num_sub_vectors=num_parts)


def find_in_lance(
    store: Store, split: str, column: str, query: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the vectors of the rows that are probably nearest, `(num_rows, dim)`, and the rows' numbers.

    None without an index of Lance.

    Args:
        store: Folder of the data set.
        split: Its split.
        column: Column of the vectors that are compared.
        query: Unit vector, `(dim,)` float32.
        top: Number of rows.

    Raises:
        ValueError: If Lance is not installed, or cannot read its data set.
    """
    if not _exists(store, split):
        return None
    lance, address = _import_lance("folder"), _address(store, split)
    try:
        rows = lance.dataset(address)
        if column not in _indexed(rows):
            return None
        starts, end = dict[int, int](), 0
        for fragment in rows.get_fragments():
            starts[fragment.fragment_id] = end
            end += fragment.count_rows()
        asked = {"column": column, "q": query, "k": top, "nprobes": NUM_PROBES, "refine_factor": REFINE_FACTOR}
        scanner = rows.scanner([column], nearest=asked, with_row_address=True, disable_scoring_autoprojection=True)
        found = scanner.to_table()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`folder` must hold data that Lance reads, got {_first_line(error)} for {address!r}. Remove it, and write "
            "it again with --format lance."
        ) from error
    vectors = np.stack(found.column(column).to_numpy(zero_copy_only=False)) if len(found) else query[None][:0]
    places = found.column("_rowaddr").to_pylist()  # number of the fragment in the upper 32 bits, of the row below
    numbers = np.array([starts[place >> 32] + (place & 0xFFFFFFFF) for place in places], np.int64)
    return vectors.astype(np.float32), numbers


def _import_lance(name: str) -> Any:
    try:
        return importlib.import_module("lance")
    except ImportError as error:
        raise ValueError(f"`{name}` needs Lance. Run `pip install pylance`.") from error


def _address(store: Store, split: str) -> str:
    return str(store.full_name(f"{FOLDER}/{split}.lance"))


def _exists(store: Store, split: str) -> bool:
    return bool(store.names(f"{FOLDER}/{split}.lance/_versions"))


def _indexed(rows: Any) -> set[str]:
    return {index.name for index in rows.describe_indices()}


def _batches(store: Store, shards: Sequence[Shard]) -> Any:
    """Return a reader of all rows in order, which holds a group of rows of a file in memory."""
    from pyarrow import RecordBatchReader
    from pyarrow.parquet import read_schema

    with store.open(shards[0].path) as file:
        schema = read_schema(file)
    tables = (table for shard in shards for table in read_columns(store, shard.path, schema.names))
    return RecordBatchReader.from_batches(schema, (batch for table in tables for batch in table.to_batches()))


@contextmanager
def _one_line_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # Lance raises any of them, also for no network
        raise WriteError(
            f"Lance cannot write {address!r}: {_first_line(error)}. The Parquet files are complete; the same command "
            "tries again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
