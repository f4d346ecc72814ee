import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from modeling_radio.core import packages
from modeling_radio.core.files import hash_file
from modeling_radio.core.packages import (
    MANIFEST_NAME,
    DiskSpaceError,
    Package,
    PackageCorruptError,
    PackageUnavailableError,
    fetch_package,
    is_complete,
    read_packages,
)


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
    return path


def write_tgz(path: Path, members: dict[str, bytes | None]) -> Path:
    """Write files; links to /etc/passwd in place of those without content."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(data or b"")
            tar.addfile(member, io.BytesIO(data or b""))
    return path


def pin(archive: Path, ecosystem="pypi", keep=("*",), sha256=None) -> Package:
    size = archive.stat().st_size
    return Package(ecosystem, "thing", "1.0", sha256 or hash_file(archive), size, 1000, "CC0-1.0", "tests", keep)


def named(name: str, ecosystem: str) -> Package:
    return Package(ecosystem, name, "1.0", "0" * 64, 1000, 2000, "MIT", "tests", ("*",))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(monkeypatch):
    """Replace the package client by a process that copies one archive and notes that it ran."""

    def start(archive: Path) -> Path:
        calls = archive.parent / "calls"
        script = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2]); open(sys.argv[3], 'a').write('x')"

        def command(package, download, client_cache):
            return [sys.executable, "-c", script, str(archive), str(download), str(calls)]

        monkeypatch.setattr(packages, "_client_command", command)
        monkeypatch.setattr(packages, "require_clients", lambda package: None)
        return calls

    monkeypatch.setattr(packages, "PROGRESS_INTERVAL_S", 0.01)
    return start


def leftovers(cache: Path) -> list[Path]:
    return [path for path in (cache / "packages").iterdir() if not path.name.endswith(".lock")]


def test_only_the_wanted_files_are_unpacked_and_fetched_once_by_two_and_again_when_lost(tmp_path, cache, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a/one.png": b"1", "a/two.py": b"2"})
    calls, package = serve(archive), pin(archive, keep=("*.png",))
    (cache / f"packages/.{package.slug}.killed/unpacked").mkdir(parents=True)  # as a killed process leaves it
    threads = [threading.Thread(target=fetch_package, args=(package,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = fetch_package(package)
    assert calls.read_text() == "x"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["one.png", MANIFEST_NAME]
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert (manifest["version"], manifest["license"], manifest["num_files"]) == ("1.0", "CC0-1.0", 1)
    assert leftovers(cache) == [folder]
    (folder / "a/one.png").unlink()
    assert not is_complete(package, folder)
    assert (fetch_package(package) / "a/one.png").exists()
    assert calls.read_text() == "xx"


def test_a_wrong_hash_is_retried_once_then_refused_and_nothing_stays(tmp_path, cache, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1"})
    calls = serve(archive)
    with pytest.raises(PackageCorruptError, match=r"thing 1\.0.*SHA-256"):
        fetch_package(pin(archive, sha256="0" * 64))
    assert calls.read_text() == "xx"
    assert leftovers(cache) == []


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\evil.png"])
@pytest.mark.parametrize(("ecosystem", "write"), [("pypi", write_wheel), ("npm", write_tgz)])
def test_paths_that_lead_outside_are_refused(tmp_path, cache, serve, name, ecosystem, write):
    archive = write(tmp_path / f"thing{packages._ARCHIVE_SUFFIX[ecosystem]}", {"a.png": b"1", name: b"2"})
    serve(archive)
    with pytest.raises(PackageCorruptError, match="outside"):
        fetch_package(pin(archive, ecosystem))
    assert leftovers(cache) == []
    assert not list(tmp_path.rglob("evil.png"))


def test_the_wanted_files_of_a_tar_are_unpacked_and_no_links(tmp_path, cache, serve):
    archive = write_tgz(tmp_path / "thing.tgz", {"./a/b/one.png": b"1", "two.py": b"2", "link.png": None})
    serve(archive)
    folder = fetch_package(pin(archive, "npm", keep=("*.png",)))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    assert files == {"a/b/one.png", MANIFEST_NAME}


def test_what_a_machine_lacks_is_one_clear_line(cache, monkeypatch):
    with monkeypatch.context() as change:
        change.setenv("PATH", "")
        with pytest.raises(PackageUnavailableError, match=r"^[^\n]*'npm'[^\n]*$"):
            fetch_package(named("@somebody/models", "npm"))
    with monkeypatch.context() as change:
        change.setattr(packages, "require_clients", lambda package: None)
        change.setattr(packages, "_apt_knows", lambda package: False)
        change.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(PackageUnavailableError, match="sudo apt-get update"):
            fetch_package(named("backgrounds", "debian"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    monkeypatch.setattr(packages, "download_archive", lambda *arguments: pytest.fail("the client ran"))
    with pytest.raises(DiskSpaceError, match=r"0 MB are free.*RADIO_CACHE"):
        fetch_package(named("thing", "pypi"))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_another_debian_version_is_accepted_with_a_warning(tmp_path, cache, serve, monkeypatch, caplog):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 2.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: a\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/a.jpg").write_bytes(b"1")
    archive = tmp_path / "thing_2.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(archive)], check=True, capture_output=True)
    serve(archive)
    monkeypatch.setattr(packages, "_require_apt_lists", lambda package: None)
    package = pin(archive, "debian", keep=("*.jpg",), sha256="0" * 64)
    folder = fetch_package(package)
    assert (folder / "usr/a.jpg").read_bytes() == b"1"
    assert re.search(r"2\.0 instead of .*1\.0", caplog.text)
    assert is_complete(package, folder)


ENTRY = """
thing:
  ecosystem: pypi
  version: "1.0"
  sha256: "a000000000000000000000000000000000000000000000000000000000000000"
  archive_bytes: 1_000
  unpacked_bytes: 2_000
  license: MIT
  purpose: tests
  keep: ["*.png"]
"""


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ('version: "1.0"', "version: 1.0", "version"),
        ("license: MIT", "licence: MIT", "licence"),
        ("ecosystem: pypi", "ecosystem: conda", "ecosystem"),
        ('keep: ["*.png"]', 'keep: "*.png"', "keep"),
        ("archive_bytes: 1_000", "archive_bytes: 1 kB", "archive_bytes"),
        ('"a000', '"A000', "sha256"),
        ('"a000', '"a00', "sha256"),
    ],
)
def test_pinned_packages_are_read_with_their_types_or_refused(tmp_path, before, after, field):
    path = tmp_path / "packages.yaml"
    path.write_text(ENTRY)
    sha256 = "a" + "0" * 63
    assert read_packages(path)["thing"] == Package(
        "pypi", "thing", "1.0", sha256, 1000, 2000, "MIT", "tests", ("*.png",)
    )
    assert before in ENTRY
    path.write_text(ENTRY.replace(before, after))
    with pytest.raises(ValueError, match=field):
        read_packages(path)
