import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import side_by_side
from killing import wait_for

from modeling_radio.core import interruption
from modeling_radio.core.interruption import (
    LAUNCHER_PATIENCE,
    Interrupted,
    Signaled,
    StopRequest,
    ends_in_time,
    ignore_stop_signals,
    prepare_stoppable,
    raised_signals,
    run_stoppable,
    warn_of_launcher_timeout,
)


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def seen():
    """Numbers of the signals that another handler than that of a `StopRequest` has got."""
    numbers = []
    for number in StopRequest.SIGNALS:
        signal.signal(number, lambda number, frame: numbers.append(number))
    return numbers


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
@pytest.mark.parametrize("is_answered", [True, False])
def test_the_first_signal_only_asks_and_comes_again_where_none_answers(number, is_answered, seen):
    before = signal.getsignal(number)
    with contextlib.suppress(Interrupted), StopRequest() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        assert stop.is_set
        assert seen == []
        assert stop.interrupted("").number == number
        if is_answered:
            raise stop.interrupted("saved")
    assert seen == [number] * (not is_answered)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("first", StopRequest.SIGNALS)
def test_only_the_second_ctrl_c_does_what_it_did_before(first, seen):
    with StopRequest() as stop:
        for number in (first, signal.SIGTERM, signal.SIGUSR1):  # of batch system and launcher
            os.kill(os.getpid(), number)
        assert seen == []
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]
        assert stop.is_set


@pytest.mark.parametrize(("patience", "is_warned"), [(None, True), ("600", False)])
def test_a_launcher_that_was_not_told_to_wait_is_warned_of(patience, is_warned, monkeypatch, caplog):
    monkeypatch.delenv(LAUNCHER_PATIENCE, raising=False)
    warn_of_launcher_timeout()
    assert caplog.messages == []  # without a launcher
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    if patience is not None:
        monkeypatch.setenv(LAUNCHER_PATIENCE, patience)
    warn_of_launcher_timeout()
    assert [LAUNCHER_PATIENCE in message for message in caplog.messages] == [True] * is_warned


def test_another_thread_may_enter_it():
    def enter():
        with StopRequest() as stop:
            return stop.is_set

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_wait_for_another_program_ends_with_the_program(number, tmp_path):
    before = signal.getsignal(number)
    program = f"kill -{number.value} {os.getpid()}; sleep 60; touch {tmp_path}/waited"
    with pytest.raises(Signaled) as raised, raised_signals():
        subprocess.run(["sh", "-c", program], check=False)
    assert raised.value.number == number
    assert not (tmp_path / "waited").exists()
    assert signal.getsignal(number) == before


def get_stuck():
    with ends_in_time(), raised_signals(), ThreadPoolExecutor() as pool:
        pool.submit(threading.Event().wait)
        os.kill(os.getpid(), signal.SIGTERM)


def test_threads_that_do_not_end_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(interruption, "UNWINDING_SECONDS", 0.5)
    process = multiprocessing.get_context("fork").Process(target=get_stuck)
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 128 + signal.SIGTERM


def test_a_command_that_ends_has_no_limit_any_more():
    limits = []

    def end():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            limits.extend(interruption._limits)

    with pytest.raises(KeyboardInterrupt), ends_in_time():
        end()
    (limit,) = limits
    limit.join()  # it was canceled, or would end this process now


WORKERS = """
import runpy, sys
from torch.utils.data import DataLoader
ignore_stop_signals = runpy.run_path(sys.argv[1])["ignore_stop_signals"]  # without the package, which takes seconds
batches = iter(DataLoader(range(4), num_workers=2, worker_init_fn=ignore_stop_signals))
next(batches)
kept = [batches]
kept.append(kept)  # is not freed before the interpreter ends, as what an error holds
sys.exit(5)
"""


def test_workers_that_ignore_signals_end_with_their_parent():
    command = [sys.executable, "-c", WORKERS, interruption.__file__]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False)


def test_data_workers_live_on():
    ignore_stop_signals()
    for number in StopRequest.SIGNALS:
        os.kill(os.getpid(), number)


def test_a_stop_reaches_what_a_pool_runs_and_ends_no_idle_process(tmp_path):
    context = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())  # of other tests in this process
    stop = context.Event()
    pool = ProcessPoolExecutor(2, context, prepare_stoppable, (stop, side_by_side.prepare, "", [], tmp_path, "", None))
    with pool:
        lingering = pool.submit(run_stoppable, side_by_side.linger, "first")
        pool.submit(run_stoppable, side_by_side.run, "one", 0).result()  # after it, its process is idle
        wait_for((tmp_path / "first-started").exists, 300, "it does not start")
        processes = set(multiprocessing.active_children()) - others
        assert len(processes) == 2
        stop.set()
        for process in processes:
            os.kill(process.pid, signal.SIGUSR1)  # which a batch system sends to all of them
            process.terminate()
        assert isinstance(lingering.exception(), Interrupted)
        too_late = pool.submit(run_stoppable, side_by_side.linger, "second")
        assert isinstance(too_late.exception(), Interrupted)  # and the pool is not broken
    assert not (tmp_path / "second-started").exists()
