import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from conversion.web.site import PACKAGES as PAGE
from core import packages
from core.files import hash_file
from core.packages import (
    MANIFEST_NAME,
    DiskSpaceError,
    Package,
    PackageCorruptError,
    PackageUnavailableError,
    cache_dir,
    fetch_package,
    is_complete,
)
from training.demo.assets import PACKAGES as DEMO


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
    return path


def write_tgz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pin(archive: Path, ecosystem="pypi", keep=("*",), **changes) -> Package:
    pinned = {
        "name": "thing",
        "version": "1.0",
        "sha256": hash_file(archive),
        "archive_bytes": archive.stat().st_size,
        "unpacked_bytes": 1000,
        "license": "CC0-1.0",
        "purpose": "tests",
    }
    return Package(ecosystem=ecosystem, keep=keep, **{**pinned, **changes})


def named(name: str, ecosystem: str) -> Package:
    return Package(ecosystem, name, "1.0", "0" * 64, 1000, 2000, "MIT", "tests", ("*",))


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


def test_only_the_wanted_files_are_unpacked_and_fetched_once(tmp_path, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a/one.png": b"1", "a/two.py": b"2"})
    calls = serve(archive)
    package = pin(archive, keep=("*.png",))
    folder = fetch_package(package, tmp_path / "cache")
    assert fetch_package(package, tmp_path / "cache") == folder
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["one.png", MANIFEST_NAME]
    assert calls.read_text() == "x"
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert (manifest["version"], manifest["license"], manifest["num_files"]) == ("1.0", "CC0-1.0", 1)
    assert leftovers(tmp_path / "cache") == [folder]


def test_a_wrong_hash_is_retried_once_then_refused_and_nothing_stays(tmp_path, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1"})
    calls = serve(archive)
    with pytest.raises(PackageCorruptError, match=r"thing 1\.0: the archive has SHA-256 .* expected 0000"):
        fetch_package(pin(archive, sha256="0" * 64), tmp_path / "cache")
    assert calls.read_text() == "xx"
    assert leftovers(tmp_path / "cache") == []


PINNED = [*DEMO.values(), *PAGE.values()]


@pytest.mark.parametrize("package", PINNED, ids=[package.slug for package in PINNED])
def test_nothing_of_another_archive_than_the_pinned_one_is_unpacked(package, tmp_path, monkeypatch):
    def download(package, scratch):
        archive = scratch / f"{package.name.replace('/', '-')}_{package.version}_all.deb"
        archive.write_bytes(b"another one")
        return archive

    monkeypatch.setattr(packages, "require_clients", lambda package: None)
    monkeypatch.setattr(packages, "download_archive", download)
    monkeypatch.setattr(packages, "unpack", lambda *arguments: pytest.fail("it was unpacked"))
    with pytest.raises(PackageCorruptError, match=rf"the archive has SHA-256 .*, expected {package.sha256}"):
        fetch_package(package, tmp_path)
    assert leftovers(tmp_path) == []


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, serve, monkeypatch):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1", "b.png": b"2"})
    serve(archive)
    extract = zipfile.ZipFile.extract

    def extract_one(self, member, path):
        if member.filename == "b.png":
            raise KeyboardInterrupt
        return extract(self, member, path)

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract_one)
    package = pin(archive)
    with pytest.raises(KeyboardInterrupt):
        fetch_package(package, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1"})
    serve(archive)
    package = pin(archive)
    (tmp_path / f"cache/packages/.{package.slug}.killed/unpacked").mkdir(parents=True)
    assert leftovers(tmp_path / "cache") != []
    folder = fetch_package(package, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == [folder]


def test_a_folder_that_lost_a_file_is_fetched_again(tmp_path, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1", "b.png": b"2"})
    calls = serve(archive)
    folder = fetch_package(pin(archive), tmp_path / "cache")
    (folder / "a.png").unlink()
    assert not is_complete(pin(archive), folder)
    assert (fetch_package(pin(archive), tmp_path / "cache") / "a.png").exists()
    assert calls.read_text() == "xx"


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\evil.png"])
def test_paths_that_lead_outside_are_refused(tmp_path, serve, name):
    writers = {"pypi": (write_wheel, "thing.whl"), "npm": (write_tgz, "thing.tgz")}
    for ecosystem, (write, file_name) in writers.items():
        archive = write(tmp_path / file_name, {"a.png": b"1", name: b"2"})
        serve(archive)
        with pytest.raises(PackageCorruptError, match="leads outside"):
            fetch_package(pin(archive, ecosystem), tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []
    assert not list(tmp_path.rglob("evil.png"))


def test_a_tar_is_unpacked_by_pythons_without_filters_too(tmp_path, serve, monkeypatch):
    extract = tarfile.TarFile.extract
    monkeypatch.setattr(tarfile.TarFile, "extract", lambda self, member, path="": extract(self, member, path))
    archive = write_tgz(tmp_path / "thing.tgz", {"./a/b/one.png": b"1", "two.py": b"2"})
    serve(archive)
    folder = fetch_package(pin(archive, "npm", keep=("*.png",)), tmp_path / "cache")
    assert (folder / "a/b/one.png").read_bytes() == b"1"
    assert not (folder / "two.py").exists()


def test_links_in_a_tar_are_never_unpacked(tmp_path, serve):
    archive = tmp_path / "thing.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    serve(archive)
    folder = fetch_package(pin(archive, "npm"), tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == [MANIFEST_NAME]


def test_a_missing_client_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailableError, match="needs the command 'npm'") as error:
        fetch_package(named("@somebody/models", "npm"), tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_full_disk_is_seen_before_the_download(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    monkeypatch.setattr(packages, "download_archive", lambda *arguments: pytest.fail("the client ran"))
    with pytest.raises(DiskSpaceError, match=r"where 0 MB are free.*RADIO_CACHE"):
        fetch_package(named("thing", "pypi"), tmp_path)


def test_two_at_once_fetch_once(tmp_path, serve):
    archive = write_wheel(tmp_path / "thing.whl", {"a.png": b"1"})
    calls = serve(archive)
    package = pin(archive)
    threads = [threading.Thread(target=fetch_package, args=(package, tmp_path / "cache")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.read_text() == "x"
    assert len(leftovers(tmp_path / "cache")) == 1


def test_apt_without_lists_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "require_clients", lambda package: None)
    monkeypatch.setattr(packages, "_apt_knows", lambda package: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PackageUnavailableError, match="sudo apt-get update"):
        fetch_package(named("backgrounds", "debian"), tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_another_debian_version_is_accepted_with_a_warning(tmp_path, serve, monkeypatch, caplog):
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
    folder = fetch_package(package, tmp_path / "cache")
    assert (folder / "usr/a.jpg").read_bytes() == b"1"
    assert "serves 2.0 instead of the pinned 1.0" in caplog.text
    assert is_complete(package, folder)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("RADIO_CACHE")
    assert cache_dir() == Path.home() / ".cache/radio"
