"""Which rows are nearest to a vector: through an index of faiss, or by looking at every one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from foundation.files import write_file
from training.extraction.columns import SCALE, SUMMARY, restored
from training.extraction.shards import Shard, read_columns


FOLDER = "index"
NUM_LINKS = 32
"""Of each vector in a "hnsw" index: the default of faiss."""


def index_path(split: str, column: str) -> str:
    """Return where the index of a column of a split lies, below the data set's folder."""
    return f"{FOLDER}/{split}-{column.replace('/', '--')}.faiss"


def build_indexes(output: Path, shards: Sequence[Shard], columns: Sequence[str], kind: str) -> None:
    """Write an index of unit vectors for each column and split.

    Args:
        output: Folder of the data set.
        shards: All its files.
        columns: Of one vector for each image.
        kind: "flat" or "hnsw".

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    import faiss

    for column in columns:
        for split in dict.fromkeys(shard.split for shard in shards):
            index: Any = None
            of_split = [shard for shard in shards if shard.split == split]
            for shard in tqdm(of_split, f"index of {column}", unit=" files", leave=False, disable=None):
                for vectors in _unit_vectors(output / shard.path, column):
                    if index is None:
                        index = _new_index(faiss, vectors.shape[1], kind)
                    index.add(vectors)
            write_file(
                output / index_path(split, column), lambda place, index=index: faiss.write_index(index, str(place))
            )


def nearest(
    output: Path, shards: Sequence[Shard], column: str, query: np.ndarray, top: int
) -> list[tuple[float, str, int]]:
    """Return the rows with the largest cosine, as cosine, split and number, the best first.

    Indexes are used where there are some.

    Args:
        output: Folder of the data set.
        shards: All its files.
        column: Whose vectors are compared.
        query: Unit vector, `(dim,)` float32.
        top: How many rows.
    """
    found: list[tuple[float, str, int]] = []
    for split in dict.fromkeys(shard.split for shard in shards):
        path = output / index_path(split, column)
        of_split = [shard for shard in shards if shard.split == split]
        scores, numbers = (
            _by_index(path, query, top) if path.exists() else _by_all(output, of_split, column, query, top)
        )
        found += [(float(score), split, int(number)) for score, number in zip(scores, numbers, strict=True)]
    return sorted(found, key=lambda each: (-each[0], each[1:]))[:top]


def summary_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of summaries: the model's and the adaptors'."""
    return [name for name in names if name.rpartition("/")[2] == SUMMARY]


def _new_index(faiss: Any, dim: int, kind: str) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexHNSWFlat(dim, NUM_LINKS, faiss.METRIC_INNER_PRODUCT)


def _by_index(path: Path, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:  # all that faiss raises
        raise ValueError(f"{path} is no index that faiss reads. Remove it, or write it again with --index.") from error
    scores, numbers = index.search(query[None], top)
    is_there = numbers[0] >= 0  # fewer rows than asked for are filled up
    return scores[0][is_there], numbers[0][is_there]


def _by_all(
    output: Path, shards: Sequence[Shard], column: str, query: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.concatenate(
        [vectors @ query for shard in shards for vectors in _unit_vectors(output / shard.path, column)]
    )
    numbers = np.argsort(-cosines, kind="stable")[:top]
    return cosines[numbers], numbers


def _unit_vectors(path: Path, column: str) -> Iterator[np.ndarray]:
    """Yield the vectors of a column, `(num_rows, dim)` float32, of length 1 or 0, one group after the other."""
    from pyarrow.parquet import read_schema

    scale = f"{column}{SCALE}"
    has_scale = scale in read_schema(path).names
    for table in read_columns(path, [column, scale] if has_scale else [column]):
        lists = table.column(column).combine_chunks()
        numbers = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
        vectors = restored(numbers, table.column(scale).to_numpy() if has_scale else None)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        yield vectors / np.where(norms > 0, norms, 1)
