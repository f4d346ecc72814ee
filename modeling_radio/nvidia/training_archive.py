"""Opens the archive of a training file without running its code, and refuses one that is damaged or inconsistent."""

import io
import pickle
import re
import stat
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


ALLOWED_GLOBALS: list[Callable | tuple[Callable, str]] = [Namespace]
"""Classes that a training file may create besides tensors, data types and plain containers."""
MAX_DEPTH = 32
"""Largest depth of nested containers; NVIDIA's files have five."""
MAX_VALUES = 1_000_000
"""Largest number of containers and values together: a few bytes of a pickle can stand for any number."""
MAX_RECORDS = 20_000
"""Most records of an archive. C-RADIOv4-H has 700 weights; moving averages and an optimizer make that thousands."""
MAX_PICKLE_BYTES = 4 * 2**20
"""Largest pickle, with 200 bytes for each tensor. A larger one takes gigabytes while it is opened."""
_BYTES_OF_AN_ENTRY = 256  # of the archive's directory: a name of 200 letters
_OF_ANY_SIZE = (b"__builtin__\nbytearray\n", b"builtins\nbytearray\n", b"_codecs\nencode\n")
_SAVE_AGAIN = "Download it again, or save it again with torch.save."
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


def open_archive(path: Path, *, with_sums: bool = True) -> Any:
    """Return the content of a file of `torch.save`, its tensors mapped into memory.

    Args:
        path: The file.
        with_sums: Whether to compare all records with their checksums, for which the whole file is read. Who reads
            some tensors gives those to `check_sums_of`.

    Raises:
        ValueError: If it is damaged or of the format before PyTorch 1.6, its archive is compressed or has false names
            or sizes, its pickle asks to run code, or it holds more than any checkpoint does.
    """
    entries = _check_records(path)
    if with_sums:
        _check_sums(path)
    content = _unpickle(path)
    _check_storages(path, _tensors_of(path, content), Counter(entry.file_size for entry in entries))
    return content


def check_sums_of(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of an opened file that are not what was written: no record has their length and CRC-32.

    Args:
        path: The file.
        tensors: Some of what `open_archive` returned, by key.

    Raises:
        ValueError: If one is damaged.
    """
    records = {(entry.file_size, entry.CRC) for entry in _check_records(path)}
    for key, tensor in tensors.items():
        stored = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if (len(stored), zlib.crc32(stored.numpy().data)) not in records:
            raise ValueError(f"{str(path)!r} is damaged: {key!r:.80} is not what was written. Download it again.")


class _ArchiveFile(io.FileIO):
    """A file that refuses to read more at once than the directory of `MAX_RECORDS` records.

    `zipfile` reads the directory at once and then makes objects of it that are ten times as large.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_RECORDS * _BYTES_OF_AN_ENTRY:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes, of more than {MAX_RECORDS:,} records")
        return super().read(size)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of `zipfile` about a damaged file into one that names the file."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, struct.error) as error:
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch file: {error}.") from error


def _check_records(path: Path) -> list[zipfile.ZipInfo]:
    """Return the tensors' records.

    The file is mapped as if it were uncompressed; a compressed archive would give noise, or expand beyond the memory.
    Files of the format before zip are refused: RADIO is younger, and unpickling them takes the tensors' memory before
    any of their sizes is known.
    """
    with _damage_named(path):
        is_archive = zipfile.is_zipfile(path)
    if not is_archive:
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch file: torch.save writes a zip archive. {_SAVE_AGAIN}")
    with _damage_named(path), _ArchiveFile(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    _check_entries(path, entries)
    _check_pickle(path, entries)
    return [entry for entry in entries if "/data/" in entry.filename and entry.file_size]


def _check_entries(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    names = Counter(entry.filename for entry in entries)
    refused = {
        "without compression, as torch.save writes it": [e.filename for e in entries if e.compress_type],
        "with each record once": [name for name, count in names.items() if count > 1],
        "without links": [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)],
    }
    for rule, found in refused.items():
        if found:
            raise ValueError(
                f"{str(path)!r} must be stored {rule}, got {len(found)} other records, {found[0]!r:.80} first. "
                f"{_REPACK}"
            )
    total, actual = sum(entry.file_size for entry in entries), path.stat().st_size
    if len(entries) > MAX_RECORDS or total > actual:
        raise ValueError(
            f"{str(path)!r} is damaged: its {len(entries):,} records, of at most {MAX_RECORDS:,}, claim {total:,} "
            f"bytes, and it has {actual:,}."
        )


def _check_pickle(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a pickle of a wrong size, or one that asks for memory of any size, before it is opened."""
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or not 0 < pickles[0].file_size <= MAX_PICKLE_BYTES:
        raise ValueError(
            f"{str(path)!r} is damaged or no PyTorch file: it must hold one data.pkl of at most {MAX_PICKLE_BYTES:,} "
            f"bytes, got {[(entry.filename, entry.file_size) for entry in pickles]!r:.200}. {_SAVE_AGAIN}"
        )
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        content = archive.read(pickles[0])
    found = next((name for name in _OF_ANY_SIZE if name in content), None)
    if found is not None:
        wanted = found.decode().replace("\n", ".").strip(".")
        raise ValueError(f"{str(path)!r} was not opened: its pickle asks for `{wanted}`, which no checkpoint needs.")


def _check_sums(path: Path) -> None:
    """Refuse records whose CRC-32 is wrong; `torch.load` does not compare it."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{str(path)!r} is damaged: {damaged!r:.80} is not what was written. Download it again.")


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which no user can change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    """Yield all tensors of nested containers, which may contain themselves.

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


def _check_storages(path: Path, tensors: Iterable[Tensor], records: Counter[int]) -> None:
    """Refuse an archive whose tensors differ in size from their records."""
    stored = (tensor for tensor in tensors if tensor.layout == torch.strided and tensor.device.type == "cpu")
    storages = [tensor.untyped_storage() for tensor in stored]
    sizes = Counter({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())
    if any(count > records[size] for size, count in sizes.items()):
        raise ValueError(
            f"{str(path)!r} is damaged: its tensors and the records that hold them differ in size. Download it again."
        )
