import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import side_by_side

from foundation.interruption import Interrupted, StopRequest, ignore_stop_signals, prepare_stoppable, run_stoppable


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_the_first_signal_only_asks(number):
    with StopRequest() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        assert stop.is_set


def test_the_second_signal_interrupts_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process starts with it ignored
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set


def test_it_is_set_once_the_time_is_over_without_having_been_asked_for():
    assert not StopRequest(deadline=time.monotonic() + 1000).is_set
    over = StopRequest(deadline=time.monotonic() - 1)
    assert over.is_set
    assert not over.is_asked


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_another_thread_may_enter_it():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append(stop.is_set)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


def test_data_workers_live_on():
    ignore_stop_signals()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_reaches_what_a_pool_runs_and_ends_no_idle_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(2, context, prepare_stoppable, (stop, side_by_side.prepare, "", [], tmp_path, ""))
    with pool:
        lingering = pool.submit(run_stoppable, side_by_side.linger, "first")
        pool.submit(run_stoppable, side_by_side.run, "one", 0).result(timeout=30)  # after it, its process is idle
        wait_for((tmp_path / "first-started").exists)
        assert len(multiprocessing.active_children()) == 2
        stop.set()
        for process in multiprocessing.active_children():
            process.terminate()
        assert isinstance(lingering.exception(timeout=20), Interrupted)
        too_late = pool.submit(run_stoppable, side_by_side.linger, "second")
        assert isinstance(too_late.exception(timeout=20), Interrupted)  # and the pool is not broken
    assert not (tmp_path / "second-started").exists()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
