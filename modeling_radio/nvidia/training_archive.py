"""Opens the archive of a training file without running its code, and refuses one that is damaged."""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


ALLOWED_GLOBALS: list[Callable | tuple[Callable, str]] = [Namespace]
"""Classes that a training file may create besides tensors, data types and plain containers."""
_OF_DAMAGED_FILES = (
    *(zipfile.BadZipFile, struct.error, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(OverflowError, AssertionError, OSError),
)
"""Errors of `zipfile` and `torch.load` about files that are cut, damaged or something else."""


def open_archive(path: Path, *, with_sums: bool = True) -> Any:
    """Return the content of a file of `torch.save`, its tensors mapped into memory.

    Args:
        path: The file.
        with_sums: Whether to compare all records with their checksums, for which the whole file is read. Who reads
            some tensors gives those to `check_sums_of`.

    Raises:
        ValueError: If it is damaged, compressed or of the format before PyTorch 1.6, or its pickle asks to run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            is_compressed = any(entry.compress_type for entry in archive.infolist())
            damaged = archive.testzip() if with_sums else None  # `torch.load` compares no CRC-32
        if is_compressed:  # mapped as it is, it would give noise
            raise ValueError("its records are compressed")
        if damaged is not None:
            raise ValueError(f"{damaged!r:.80} is not what was written")
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which no user can change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for `{wanted.group(1)}`" if wanted else "cannot be read"
        raise ValueError(
            f"{str(path)!r} was not opened, and none of its code was run: its pickle {asks}, and a checkpoint needs "
            "only tensors, numbers and argparse.Namespace."
        ) from error
    except _OF_DAMAGED_FILES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{str(path)!r} is damaged or no PyTorch file: {reason}. Download it again, or save it with torch.save."
        ) from error


def check_sums_of(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of an opened file that are not what was written: no record has their length and CRC-32.

    Args:
        path: The file.
        tensors: Some of what `open_archive` returned, by key.

    Raises:
        ValueError: If one is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = {(entry.file_size, entry.CRC) for entry in archive.infolist()}
    for key, tensor in tensors.items():
        stored = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if (len(stored), zlib.crc32(stored.numpy().data)) not in records:
            raise ValueError(f"{str(path)!r} is damaged: {key!r:.80} is not what was written. Download it again.")
