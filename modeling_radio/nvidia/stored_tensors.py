"""Locations of the tensors of a folder: headers of safetensors files, and indices of several, validated before use."""

import json
import math
import re
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import cached_file

from modeling_radio.checks_radio import check_choice, read_json


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the file with all weights of a folder, and of the index of several."""
_INTEGERS = {"I64": "q", "I32": "i"}
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")


class StoredTensor(NamedTuple):
    """Location of a tensor in a safetensors file.

    Attributes:
        file: The file.
        start: Its first byte there.
        num_bytes: Its length.
        dtype: Its data type, as safetensors names it.
        shape: Its shape.
    """

    file: Path
    start: int
    num_bytes: int
    dtype: str
    shape: list[int]


def stored_tensors(
    folder: str | Path, location: Mapping[str, Any] | None = None, *, files: Iterable[str] | None = None
) -> dict[str, StoredTensor]:
    """Return where each tensor of a folder lies; nothing where the weights are not in safetensors files.

    Args:
        folder: A folder or the name of a Hub repository.
        location: Where transformers shall look for it, such as a `revision`.
        files: Names of the files that count; None for all of the index.

    Raises:
        ValueError: If an index or a file is damaged, or an index names files elsewhere.
    """
    location = location or {}
    names = [WEIGHTS] if files is None else list(files)
    index = _find(folder, INDEX, location) if files is None else None
    if index is not None:
        names = indexed_files(index)
    found = [file for name in names if (file := _find(folder, name, location)) is not None]
    return {key: tensor for file in found for key, tensor in _read_header(file).items()}


def _find(folder: str | Path, name: str, location: Mapping[str, Any]) -> Path | None:
    try:
        found = cached_file(folder, name, **location)
    except OSError:
        return None  # transformers will say so where it needs the file
    return None if found is None else Path(found)


def weight_files(folder: str | Path) -> list[str]:
    """Return the names of the weight files of a folder on this machine.

    Raises:
        ValueError: If one is missing, or as `index_of`.
    """
    index = index_of(folder)
    names = [WEIGHTS] if index is None else indexed_files(index)
    check_there(folder, names)
    return names


def check_there(folder: str | Path, names: Iterable[str]) -> None:
    """Refuse a folder on this machine without some files.

    Raises:
        ValueError: It names the missing ones.
    """
    missing = [name for name in names if not Path(folder, name).is_file()]
    if missing:
        raise ValueError(f"{str(folder)!r} lacks {', '.join(missing)}.")


def index_of(folder: str | Path) -> Path | None:
    """Return the index of a folder on this machine; None if its weights are in one file.

    Raises:
        ValueError: If it has both: transformers reads the one file, other programs those of the index. Or as
            `indexed_files`.
    """
    index = Path(folder, INDEX)
    if not index.is_file():
        return None
    if Path(folder, WEIGHTS).is_file() and WEIGHTS not in indexed_files(index):
        raise ValueError(
            f"{str(folder)!r} must have one set of weights, got {WEIGHTS} and {INDEX}. Remove the one that is outdated."
        )
    return index


def changed_index(
    index: Mapping[str, Any], before: Mapping[str, StoredTensor], after: Mapping[str, StoredTensor]
) -> dict[str, Any]:
    """Return a parsed index for files that were written anew, with other sizes of tensors or without some of them.

    Args:
        index: The old index.
        before: Tensors of these files, by name.
        after: Tensors of the new files.

    Raises:
        ValueError: If a size in the old index is no number.
    """
    changes = {"total_size": _num_bytes(after) - _num_bytes(before), "total_parameters": _count(after) - _count(before)}
    metadata = dict(index["metadata"])
    for name in changes.keys() & metadata.keys():
        if not isinstance(metadata[name], int | float):
            raise ValueError(f"`{name}` of the index must be a number, got {metadata[name]!r:.60}.")
        metadata[name] += changes[name]
    gone = before.keys() - after.keys()
    weight_map = {name: file for name, file in index["weight_map"].items() if name not in gone}
    return {**index, "metadata": metadata, "weight_map": weight_map}


def _num_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors.values())


def _count(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def indexed_files(index: Path) -> list[str]:
    """Return the files that an index lists. They must lie beside it: an index of strangers must not read elsewhere.

    Raises:
        ValueError: If one does not, or the file is no index.
    """
    content = read_json(index)
    files, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"`weight_map` in {str(index)!r} must map tensors to files, got {files!r:.60}.")
    for key, name in files.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ValueError(
                f"`weight_map` in {str(index)!r} must name .safetensors files beside it, got {name!r:.60} for {key!r}."
            )
    if not isinstance(metadata, dict):  # transformers reads it
        raise ValueError(f"`metadata` in {str(index)!r} must be an object, got {metadata!r:.60}.")
    return sorted(set(files.values()))


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of a safetensors file lies.

    Raises:
        ValueError: If the file has no valid header, or the header names bytes beyond the file.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size) if size <= _LARGEST_HEADER else b""
    available = file.stat().st_size - 8 - size
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is damaged or no safetensors file: {error}.") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{str(file)!r} is damaged or no safetensors file: its header is {entries!r:.60}.")
    entries.pop("__metadata__", None)
    tensors = {key: _read_entry(file, 8 + size, available, key, entry) for key, entry in entries.items()}
    end = 8 + size
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if tensor.start != end:
            raise ValueError(f"{str(file)!r} is damaged: {key!r} must begin at byte {end}, got {tensor.start}.")
        end += tensor.num_bytes
    return tensors


def _read_entry(file: Path, start: int, available: int, key: str, entry: Any) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*sides], "data_offsets": [int(first), int(last)]} if (
            0 <= first <= last <= available and all(isinstance(side, int) for side in sides)
        ):
            return StoredTensor(file, start + first, last - first, dtype, sides)
    raise ValueError(f"{str(file)!r} is damaged: {key!r} must lie in {available} bytes, got {entry!r:.200}.")


def read_integers(name: str, tensor: StoredTensor) -> list[int]:
    """Return the whole numbers of a tensor.

    Args:
        name: Name of the tensor, for messages.
        tensor: Where it lies.

    Raises:
        ValueError: If it holds something else, or has another length than its shape.
    """
    check_choice(f"dtype of {name}", tensor.dtype, _INTEGERS)
    integers = array(_INTEGERS[tensor.dtype])
    if tensor.num_bytes != math.prod(tensor.shape) * integers.itemsize:
        raise ValueError(f"{str(tensor.file)!r} is damaged: {name!r} has another length than its shape.")
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        integers.frombytes(stream.read(tensor.num_bytes))
    return integers.tolist()
