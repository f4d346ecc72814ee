"""Archives of packages: their hash, and the kept files out of them, none of which leads outside."""

from __future__ import annotations

import fnmatch
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from foundation.packages.pinned import Package, PackageCorruptError


def unpack(package: Package, archive: Path, destination: Path) -> None:
    """Unpack the files that a package keeps into a new folder.

    Raises:
        PackageCorruptError: If the archive is damaged or holds a path that leads outside.
    """
    destination.mkdir()
    try:
        if package.ecosystem == "pypi":
            _unpack_wheel(archive, destination, package.keep)
        elif package.ecosystem == "npm":
            with tarfile.open(archive, "r:gz") as tar:
                _unpack_tar(tar, destination, package.keep)
        else:
            _unpack_deb(archive, destination, package.keep)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise PackageCorruptError(f"{package.name} {package.version}: the archive was refused: {error}.") from error


def _unpack_wheel(archive: Path, destination: Path, keep: Sequence[str]) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            _refuse_unsafe_path(member.filename, is_link=stat.S_ISLNK(member.external_attr >> 16))
        for member in wheel.infolist():
            if not member.is_dir() and _is_kept(member.filename, keep):
                wheel.extract(member, destination)


def _unpack_tar(tar: tarfile.TarFile, destination: Path, keep: Sequence[str]) -> None:
    """Unpack the kept files of an open tar, by hand: the oldest Pythons have no filter that keeps links out."""
    for member in tar:
        _refuse_unsafe_path(member.name.removeprefix("./"), is_link=False)
        if member.isfile() and _is_kept(member.name, keep):
            content, path = tar.extractfile(member), destination / member.name
            assert content is not None  # as of every regular file
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)


def _unpack_deb(archive: Path, destination: Path, keep: Sequence[str]) -> None:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        stream: IO[bytes] | None = process.stdout
        assert stream is not None
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            _unpack_tar(tar, destination, keep)
        stream.read()  # the end-of-archive padding: dpkg-deb would die of SIGPIPE if we closed before it
    if process.returncode != 0:
        raise ValueError(f"dpkg-deb left with status {process.returncode}")


def _is_kept(name: str, keep: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)


def _refuse_unsafe_path(name: str, *, is_link: bool) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or is_link:
        raise ValueError(f"member {name!r} leads outside the archive")
