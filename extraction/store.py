"""The folder of a data set: on this machine, or at an address of `fsspec` such as `s3://bucket/features`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from modeling_radio.core.files import (
    TEMPORARY_PREFIX,
    WriteError,
    move_into_place,
    one_line_errors,
    remove_abandoned,
    scratch_folder,
    write_file,
)


WHOLE_UPLOADS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""Kinds of addresses of object stores, where a file has its name only when all of it was uploaded; elsewhere, as at
`sftp://`, a killed upload leaves a part that looks like a finished file."""
_ADDRESS = re.compile(r"(\w+)://")


def is_address(name: str | Path) -> bool:
    """Return whether a name is an address and no path."""
    return _ADDRESS.match(str(name)) is not None


class Store:
    """Files of a folder by their names in it, such as `data/train-00000-of-00001.parquet`.

    A file has its name only when all of it is there: on this machine it is moved there, and object stores show no part
    of an upload. Addresses of other kinds are only read: `check_writable` refuses them.

    Args:
        address: Path of the folder, or its address.
        name: Name of the argument, for messages.

    Attributes:
        folder: The folder on this machine; None for an address.

    Raises:
        ValueError: If the address is of no known kind, its kind needs a package, or it cannot be reached.
    """

    def __init__(self, address: str | Path, name: str = "output") -> None:
        self.address = str(address).rstrip("/") or "/"
        self.folder = None if is_address(address) else Path(address)
        if self.folder is None:
            from fsspec.core import url_to_fs  # comes with `datasets`

            try:
                self._system, self._root = url_to_fs(self.address, use_listings_cache=False)
                self.names()
            except Exception as error:  # file systems raise anything: a missing package, no key, no network
                raise ValueError(f"`{name}` must be a folder that is reached, got {address!r}: {error}.") from error

    def __str__(self) -> str:
        return self.address

    def check_writable(self) -> None:
        """Refuse an address that is not one of an object store.

        Raises:
            ValueError: If the store is at such an address.
        """
        kind = _ADDRESS.match(self.address)
        if kind is not None and kind[1] not in WHOLE_UPLOADS:
            raise ValueError(
                f"`output` must be a folder or the address of an object store ({', '.join(WHOLE_UPLOADS)}), got "
                f"{self.address!r}, where a killed upload would look finished. Name a folder, or mount it as one."
            )

    def names(self, folder: str = "") -> list[str]:
        """Return the names of files and folders in a folder, sorted; none if it does not exist."""
        if self.folder is not None:
            path = self.folder / folder
            found = os.listdir(path) if path.is_dir() else []
            return sorted(name for name in found if not name.startswith(TEMPORARY_PREFIX))
        place = self._place(folder) if folder else self._root
        with suppress(FileNotFoundError):
            with self._remote(folder):
                found = cast("list[str]", self._system.ls(place, detail=False))
            return sorted(
                {name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != place.strip("/")}
            )
        return []

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        if self.folder is not None:
            return (self.folder / name).is_file()
        with self._remote(name):
            return bool(self._system.isfile(self._place(name)))

    def num_bytes(self, folder: str) -> int:
        """Return the size of all files of a folder."""
        if self.folder is not None:
            return sum((self.folder / folder / name).stat().st_size for name in self.names(folder))
        with self._remote(folder):
            return sum(each["size"] or 0 for each in self._system.ls(self._place(folder), detail=True))

    def sizes(self) -> dict[str, int]:
        """Return the size of each file at an address by its name, also of those in folders; without links."""
        assert self.folder is None
        with self._remote(""):
            found = cast("dict[str, dict[str, Any]]", self._system.find(self._root, detail=True))
        root = self._root.strip("/")
        return {
            place.strip("/").removeprefix(root).lstrip("/"): facts["size"] or 0
            for place, facts in found.items()
            if facts["type"] == "file" and not facts.get("islink") and not place.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        if self.folder is not None:
            return (self.folder / name).read_bytes()
        with self._remote(name):
            return cast(bytes, self._system.cat_file(self._place(name)))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, from any position."""
        if self.folder is not None:
            return (self.folder / name).open("rb")
        with self._remote(name):
            return cast("IO[bytes]", self._system.open(self._place(name), "rb"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it.

        Raises:
            WriteError: If writing fails.
        """
        if self.folder is not None:
            write_file(self.folder / name, lambda temporary: temporary.write_bytes(content))
            return
        with self._remote(name):
            self._system.pipe_file(self._place(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether this process did. Of several at once, one does.

        Raises:
            WriteError: If writing fails.
        """
        if self.folder is None:
            try:
                with self._remote(name):  # s3fs: a conditional put (If-None-Match); others as their file systems can
                    self._system.pipe_file(self._place(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        path = self.folder / name
        with one_line_errors(path):
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with path.open("xb") as file:
                        file.write(content)
                except FileExistsError:
                    return False
                except FileNotFoundError:  # another process has removed the empty folder right now
                    continue
                return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            if self.folder is not None:
                (self.folder / name).unlink()
                return
            with self._remote(name):
                self._system.rm_file(self._place(name))

    def remove_empty(self, *folders: str) -> None:
        """Remove folders that are empty; object stores have none."""
        for name in folders:
            with suppress(OSError):
                if self.folder is not None:
                    (self.folder / name).rmdir()

    @contextmanager
    def writing(self, name: str, owner: str = "") -> Iterator[Path]:
        """Yield the path of a temporary file, which gets its name, or is uploaded, unless the context raises.

        Args:
            name: Name of the file.
            owner: Name of the worker that writes; `owners` returns it.

        Raises:
            WriteError: If this fails.
        """
        if self.folder is not None:
            path = self.folder / name
            with scratch_folder(path.parent, f"{TEMPORARY_PREFIX}{owner}-") as scratch:
                yield scratch / path.name
                with one_line_errors(path):
                    move_into_place(scratch / path.name, path)
            return
        with tempfile.TemporaryDirectory() as scratch:
            temporary = Path(scratch, name.rpartition("/")[2])
            yield temporary
            with self._remote(name):
                self._system.put_file(str(temporary), self._place(name))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Yield the path of a file for libraries that read paths only; one at an address is copied."""
        if self.folder is not None:
            yield self.folder / name
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, name.rpartition("/")[2])
            with self._remote(name):
                self._system.get_file(self._place(name), str(copy))
            yield copy

    def owners(self, folder: str) -> set[str]:
        """Return the workers that write in a folder, or were killed while they did; none at an address."""
        found = [] if self.folder is None else (self.folder / folder).glob(f"{TEMPORARY_PREFIX}*-*")
        return {path.name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0] for path in found}

    def remove_abandoned(self, folder: str, owner: str) -> None:
        """Remove what a worker that is gone left half written in a folder."""
        if self.folder is not None:
            remove_abandoned(self.folder / folder, f"{TEMPORARY_PREFIX}{owner}-")

    def full_name(self, name: str) -> Any:
        """Return path or address of a file, for messages."""
        return self.folder / name if self.folder is not None else f"{self.address}/{name}"

    @contextmanager
    def _remote(self, name: str) -> Iterator[None]:
        """Report in one line why a file at an address is not reached; that it exists, or does not, passes."""
        try:
            yield
        except (FileExistsError, FileNotFoundError):
            raise
        except Exception as error:  # file systems raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            if "PreconditionFailed" in reason or "ConditionalRequestConflict" in reason:
                raise FileExistsError(self.full_name(name)) from error
            raise WriteError(f"{self.full_name(name)!r} is not reached: {reason}. What was saved is intact.") from error

    def _place(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
