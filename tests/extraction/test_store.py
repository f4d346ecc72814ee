"""Files of a folder, here and at an address: created once, and faults of the network in one line."""

import uuid

import pytest

from modeling_radio.core.files import WriteError
from modeling_radio.extraction.shards import check_folder
from modeling_radio.extraction.store import Store


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return Store(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/out")


def test_files_are_created_once_and_read_by_their_names(store):
    assert store.names() == store.names("a") == []
    assert [store.create("a/b", each) for each in (b"one", b"two")] == [True, False]
    assert (store.read("a/b"), store.names(), store.names("a")) == (b"one", ["a"], ["b"])
    store.write("a/b", b"three")
    assert store.num_bytes("a") == 5
    with store.reading("a/b") as path, store.open("a/b") as file:
        assert path.read_bytes() == file.read() == b"three"
    assert store.folder is not None or store.sizes() == {"a/b": 5}
    store.remove("a/b")
    store.remove("a/b")
    assert not store.exists("a/b")
    with pytest.raises(FileNotFoundError):
        store.read("a/b")


def test_addresses_that_show_parts_of_uploads_are_only_read(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    store = Store(f"file://{tmp_path}")
    assert store.read("a") == b"a"
    with pytest.raises(ValueError, match=r"`output` .*'file://"):
        check_folder(store)
    check_folder(Store(f"memory://{uuid.uuid4().hex}/out"))


def test_what_fails_leaves_no_file(store):
    def write():
        with store.writing("a/b") as path:
            path.write_bytes(b"half")
            raise RuntimeError("by us")

    with pytest.raises(RuntimeError, match="by us"):
        write()
    assert store.names("a") == []


def test_faults_of_the_network_are_one_line(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}/out")

    class NoEndpointError(Exception):
        pass

    def fail(*arguments, **options):
        raise NoEndpointError("no route\nto the host")

    for name in ("pipe_file", "cat_file", "ls", "isfile"):
        monkeypatch.setattr(store._system, name, fail)
    calls = (store.names, *(lambda call=call: call("a") for call in (store.read, store.exists)))
    for call in (*calls, lambda: store.create("a", b""), lambda: store.write("a", b"")):
        with pytest.raises(WriteError, match=r"/out.* no route\."):
            call()
