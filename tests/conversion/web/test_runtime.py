"""The runtime comes out of pinned packages, whose hash is verified, or out of a folder."""

import io
import sys
import tarfile
from dataclasses import replace

import pytest
from tiny_site import save_runtime

from conversion.web import site
from conversion.web.site import BUILDS, ORT, PACKAGES, TOKENIZER_SCRIPT, TOKENIZERS, copy_runtime, find_runtime
from core import packages
from core.files import hash_file
from core.packages import PackageCorruptError, PackageUnavailableError


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Serve an archive with the names of the real one's files in place of npm."""
    archive = tmp_path / "ort.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*PACKAGES[ORT].keep, "package/dist/ort.all.js"]:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    script = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"

    def command(package, download, client_cache):
        return [sys.executable, "-c", script, str(archive), str(download)]

    monkeypatch.setattr(packages, "_client_command", command)
    monkeypatch.setattr(packages, "PROGRESS_INTERVAL_S", 0.01)
    monkeypatch.setattr(packages, "require_clients", lambda package: None)
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "cache"))
    return archive


def test_files_come_out_of_the_verified_package(stand_in, monkeypatch):
    monkeypatch.setitem(PACKAGES, ORT, replace(PACKAGES[ORT], sha256=hash_file(stand_in)))
    found = find_runtime(None, backends=["wasm"], with_tokenizers=False)
    assert set(found) == set(vars(BUILDS["wasm"]).values())
    assert all(path.read_text() == f"package/dist/{name}" for name, path in found.items())


def test_another_archive_than_the_pinned_one_is_refused(stand_in):
    with pytest.raises(PackageCorruptError, match="the archive has SHA-256"):
        find_runtime(None, backends=["wasm"], with_tokenizers=False)


def test_without_npm_a_folder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailableError, match=r"needs the command 'npm'.* give a folder .*--runtime DIR"):
        find_runtime(None, backends=["wasm"], with_tokenizers=False)


def test_a_folder_is_searched_to_any_depth_and_a_missing_file_is_named(tmp_path):
    found = find_runtime(save_runtime(tmp_path / "all"), backends=list(BUILDS), with_tokenizers=True)
    assert len(found) == 7
    lacking = save_runtime(tmp_path / "some", leave_out=TOKENIZER_SCRIPT)
    with pytest.raises(ValueError, match=f"`runtime` must be a folder with {TOKENIZER_SCRIPT} .*{TOKENIZERS}"):
        find_runtime(lacking, backends=["wasm"], with_tokenizers=True)


def test_the_page_is_told_where_the_copies_lie(tmp_path):
    found = find_runtime(save_runtime(tmp_path / "all"), backends=["wasm"], with_tokenizers=True)
    (tmp_path / "site").mkdir()
    told = copy_runtime(found, tmp_path / "site")
    assert set(told) == {"wasm", "tokenizers"}
    assert told["wasm"].pop("bytes") == found["ort-wasm-simd-threaded.wasm"].stat().st_size
    for name in (*told["wasm"].values(), told["tokenizers"]):
        assert (tmp_path / "site" / name).is_file()


def test_every_package_is_pinned():
    assert all(len(package.sha256) == 64 and package.ecosystem == "npm" for package in site.PACKAGES.values())
