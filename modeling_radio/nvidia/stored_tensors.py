"""Locations of the tensors of a folder: headers of safetensors files, and indices of several, validated before use."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from modeling_radio.checks_radio import read_json


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the file with all weights of a folder, and of the index of several."""
_BITS = re.compile(r"\d+")
"""Finds the size of a number in safetensors' name of its type, such as BF16; BOOL has none."""
_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")


class StoredTensor(NamedTuple):
    """Location of a tensor in a safetensors file.

    Attributes:
        file: The file.
        name: Its name there.
        dtype: Its data type, as safetensors names it.
        shape: Its shape.
    """

    file: Path
    name: str
    dtype: str
    shape: list[int]

    @property
    def num_bytes(self) -> int:
        """Its length."""
        bits = _BITS.search(self.dtype)
        return math.prod(self.shape) * (int(bits[0]) // 8 if bits else 1)

    def read(self) -> Tensor:
        """Return the tensor.

        Raises:
            ValueError: If the file is damaged.
        """
        with open_tensors(self.file) as file:
            return file.get_tensor(self.name)


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


def _read_header(path: Path) -> dict[str, StoredTensor]:
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return {name: StoredTensor(path, name, each.get_dtype(), each.get_shape()) for name, each in slices.items()}


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, whose header names its tensors; errors in it become one that names the file.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or no safetensors file: {error}") from error
