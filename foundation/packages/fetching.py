"""Fetch pinned packages into a cache folder: checked against their SHA-256, the kept files unpacked."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock

from foundation.files import hash_file, move_into_place, remove_partial, scratch_folder
from foundation.packages.archives import unpack
from foundation.packages.clients import archive_version, download_archive, require_clients
from foundation.packages.pinned import DiskSpaceError, Package, PackageCorruptError


logger = logging.getLogger(__name__)

MANIFEST_NAME = "package_manifest.json"
DISK_MARGIN_BYTES = 64 * 2**20  # our choice: room for the manifest, directory entries and other writers


def cache_dir() -> Path:
    """Return the cache folder: the environment variable `RADIO_CACHE`, else `~/.cache/radio`."""
    return Path(os.environ.get("RADIO_CACHE") or "~/.cache/radio").expanduser()


def fetch_package(package: Package, cache: Path | None = None) -> Path:
    """Return the folder that holds the package's files, fetching it first where it is not complete.

    A Debian release other than the pinned one serves another version: it is accepted with a logged warning,
    since apt has verified its signature; every other archive must have the pinned hash (one retry, then an
    error).

    Args:
        package: What to fetch.
        cache: Cache folder, `cache_dir()` by default.

    Returns:
        Folder with the kept files, at the paths that they have inside the archive.

    Raises:
        PackageUnavailableError: If the client is missing or the registry does not answer.
        PackageCorruptError: If the archive is not the pinned one, twice, or holds an unsafe path.
        DiskSpaceError: If the disk is too full.
    """
    root = (cache or cache_dir()) / "packages"
    target = root / package.slug
    if is_complete(package, target):
        return target
    require_clients(package)
    root.mkdir(parents=True, exist_ok=True)
    _require_disk_space(package, root)
    with FileLock(root / f".{package.slug}.lock"):
        if not is_complete(package, target):  # another process may have fetched it while we waited
            _fetch_into(package, target)
    return target


def is_complete(package: Package, folder: Path) -> bool:
    """Return whether `folder` holds everything that its manifest promises for `package`."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    same_package = (manifest.get("name"), manifest.get("keep")) == (package.name, list(package.keep))
    same_archive = manifest.get("sha256") == package.sha256 or manifest.get("version") != package.version
    return same_package and same_archive and manifest.get("num_files") == _count_files(folder)


def _fetch_into(package: Package, target: Path) -> None:
    prefix = f".{package.slug}."
    for attempt in (1, 2):
        remove_partial(target.parent, prefix)  # a killed process's: we hold the package's lock
        with scratch_folder(target.parent, prefix) as scratch:
            archive = download_archive(package, scratch)
            version = archive_version(package, archive)
            digest = hash_file(archive)
            if digest == package.sha256 or version != package.version:
                if version != package.version:
                    logger.warning(
                        "%s: this Debian release serves %s instead of the pinned %s",
                        package.name,
                        version,
                        package.version,
                    )
                unpacked = scratch / "unpacked"
                unpack(package, archive, unpacked)
                _write_manifest(package, version, digest, unpacked)
                _move_into_place(package, unpacked, target)
                return
        logger.warning("%s: SHA-256 mismatch on attempt %d of 2", package.name, attempt)
    raise PackageCorruptError(
        f"{package.name} {package.version}: the archive has SHA-256 {digest}, expected {package.sha256}. "
        "It was deleted. Check the registry or mirror that your package client uses."
    )


def _require_disk_space(package: Package, folder: Path) -> None:
    needed = package.archive_bytes + package.unpacked_bytes + DISK_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskSpaceError(
            f"{package.name} needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free. Free "
            "some space or point RADIO_CACHE to another disk."
        )


def _write_manifest(package: Package, version: str, digest: str, folder: Path) -> None:
    manifest = {
        "name": package.name,
        "ecosystem": package.ecosystem,
        "version": version,
        "sha256": digest,
        "license": package.license,
        "keep": list(package.keep),
        "num_files": _count_files(folder),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _move_into_place(package: Package, unpacked: Path, target: Path) -> None:
    """Rename the unpacked folder to its final name; what lies there already is incomplete and is removed."""
    try:
        move_into_place(unpacked, target)
    except OSError:
        if not is_complete(package, target):  # not simply a process without our lock that was faster
            raise


def _count_files(folder: Path) -> int:
    """Return the number of files below a folder, its manifest not counted."""
    return sum(len(files) for _, _, files in os.walk(folder)) - (folder / MANIFEST_NAME).exists()
