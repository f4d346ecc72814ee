"""Claims: one worker has a piece, and those of the dead are free."""

import multiprocessing
import os
import threading
import uuid

import pytest

from modeling_radio.core import files
from modeling_radio.core.files import TEMPORARY_PREFIX
from modeling_radio.extraction import claims
from modeling_radio.extraction.claims import CLAIMS, WORKERS, Claims
from modeling_radio.extraction.store import Store


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return Store(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/out")


def test_of_many_workers_each_piece_has_one(store):
    names, found = [str(number) for number in range(40)], []

    def work():
        worker = Claims(store)
        with worker.at_work():
            for number in worker.pieces(names, set):
                store.create(f"done/{number}", b"")
                found.append(number)
            barrier.wait(30)  # the living keep what they have

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(40))


def test_a_worker_that_has_ended_leaves_its_pieces(store):
    first, second, third = Claims(store), Claims(store), Claims(store)
    with second.at_work(), third.at_work():
        with first.at_work():
            assert first.take("a")
            assert not second.take("a")
            assert second.others()
            assert not second.others(besides=[first.worker, third.worker])
        assert second.take("a")
        assert not third.take("a")
        second.give_back("a")
        assert third.take("a")
        third.give_back("a")
    assert store.names(CLAIMS) == []


def test_a_killed_worker_of_this_machine_is_known_at_once(tmp_path):
    store = Store(tmp_path / "out")

    def work():
        worker = Claims(store)
        context = worker.at_work()
        context.__enter__()
        os._exit(0 if worker.take("a") else 1)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert len(store.names(WORKERS)) == 1
    worker = Claims(store)
    with worker.at_work():
        assert not worker.others()
        assert worker.take("a")


def test_scratch_folders_of_living_workers_stay_where_locks_do_not_tell(tmp_path, monkeypatch):
    """Each machine gets every lock where the file system keeps them to itself (Lustre with `localflock`)."""
    monkeypatch.setattr(files, "_takes_lock", lambda descriptor, waits: True)
    store = Store(tmp_path / "out")
    living, dead, mine = f"far.1.{8 * 'a'}", f"far.2.{8 * 'b'}", Claims(store)
    store.write(f"{WORKERS}/{living}", b"0")
    (tmp_path / "out" / "data" / f"{TEMPORARY_PREFIX}{dead}-x").mkdir(parents=True)
    with mine.at_work(), store.writing("data/a", owner=living) as path:
        path.write_bytes(b"a")
        mine.remove_abandoned("data")
        assert store.owners("data") == {living}
    assert store.read("data/a") == b"a"


def test_a_locked_scratch_folder_stays_where_signs_of_life_do_not_tell(tmp_path):
    """Containers with the host's network have one name, and do not see each other's processes."""
    store, mine = Store(tmp_path / "out"), Claims(Store(tmp_path / "out"))
    unseen = f"{mine._machine}.{2**30}.abc"
    store.write(f"{WORKERS}/{unseen}", b"0")
    with store.writing("data/a", owner=unseen) as path:
        path.write_bytes(b"a")
        mine.remove_abandoned("data")
        assert store.owners("data") == {unseen}
    assert store.read("data/a") == b"a"


def test_a_worker_of_another_machine_is_dead_without_signs_of_life(store, monkeypatch):
    """The watcher's clock decides: that of the other machine may tell anything."""
    now = [1000.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    store.write(f"{WORKERS}/far.1.abc", b"0")
    store.write(f"{CLAIMS}/a.0", b"far.1.abc")
    worker = Claims(store)
    with worker.at_work():
        for sign in range(3):
            now[0] += claims.LEASE_S + 1
            store.write(f"{WORKERS}/far.1.abc", str(sign + 1).encode())
            assert not worker.take("a")
        now[0] += claims.LEASE_S - 1
        assert not worker.take("a")
        now[0] += 2
        assert worker.take("a")
        worker.clear()
        assert store.names(WORKERS) == [worker.worker]
