"""Opens the archive of a training file: none of its code runs, and it holds what it says or is refused."""

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


ALLOWED_GLOBALS: list[Callable | tuple[Callable, str]] = [Namespace]
"""Classes that a training file may create besides tensors, data types and plain containers."""
MAX_DEPTH = 32
"""Of containers in containers; NVIDIA's files have five."""
MAX_VALUES = 1_000_000
"""Of containers and what they hold: a few bytes of a pickle can stand for any number."""
_OF_DAMAGED_FILES = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
)
_REPACK = "Unpack it and pack it with `zip -0 -r`, or save it with torch.save again."


def open_archive(path: Path) -> Any:
    """Return what a file of `torch.save` holds, its tensors mapped into memory where the format allows it.

    Raises:
        ValueError: If it is damaged, its archive is compressed or lies about sizes, it asks to run code, or it holds
            more containers than any checkpoint has.
    """
    records = _check_records(path)
    content = _unpickle(path, mapped=records is not None)  # only the zip format can be mapped
    tensors = list(_tensors_of(path, content))
    if records is not None:
        _check_storages(path, tensors, records)
    return content


def _check_records(path: Path) -> Counter[int] | None:
    """Return the sizes of the tensors' records, how often each occurs; None for a file of the format before zip.

    The file is mapped as if everything in it were stored as it is; a compressed archive would give noise, or expand to
    more than there is memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch file: {error}") from error
    compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise ValueError(
            f"{str(path)!r} must be stored without compression, as torch.save writes it, got {len(compressed)} "
            f"compressed records, {compressed[0]!r} first. {_REPACK}"
        )
    total, actual = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > actual:
        raise ValueError(f"{str(path)!r} is damaged: its records claim {total:,} bytes, and it has {actual:,}.")
    return Counter(entry.file_size for entry in entries if "/data/" in entry.filename and entry.file_size)


def _unpickle(path: Path, *, mapped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: nothing that a user could change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except _OF_DAMAGED_FILES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch file: {reason}") from error


def _refusal(path: Path, message: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted is None:
        return f"{str(path)!r} is damaged or no PyTorch file."
    return (
        f"{str(path)!r} was not opened, and none of its code was run: its pickle asks for `{wanted.group(1)}`, and a "
        "checkpoint needs only tensors, numbers and argparse.Namespace."
    )


def _tensors_of(path: Path, content: Any) -> Iterator[Tensor]:
    """Yield all tensors of nested containers, which may be nested in themselves.

    Raises:
        ValueError: If there are too many, or too deep ones.
    """
    waiting, num_values = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise ValueError(
                f"{str(path)!r} must hold at most {MAX_VALUES:,} values in containers {MAX_DEPTH} deep, got more: it "
                "is no checkpoint, or it is made to fill the memory."
            )
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Namespace):
            waiting.append((vars(value), depth + 1))
        elif isinstance(value, dict):
            waiting.extend((entry, depth + 1) for pair in value.items() for entry in pair)
        elif isinstance(value, list | tuple | set):
            waiting.extend((entry, depth + 1) for entry in value)


def _check_storages(path: Path, tensors: list[Tensor], records: Counter[int]) -> None:
    """Refuse an archive whose pickle gives a tensor other bytes than its record has."""
    storages = [tensor.untyped_storage() for tensor in tensors if _has_storage(tensor)]
    sizes = Counter({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())
    if any(count > records[size] for size, count in sizes.items()):
        raise ValueError(
            f"{str(path)!r} is damaged: its tensors and the records that hold them differ in size. Download it again."
        )


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu"
