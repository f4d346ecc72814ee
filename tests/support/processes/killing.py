"""Runs that are killed, as by a power cut: SIGKILL at a moment that the test chooses."""

import os
import signal
import time
from collections.abc import Callable
from threading import RLock

from tqdm import tqdm


def run_until(work: Callable[[], object], is_time: Callable[[], bool]) -> int:
    """Start `work` in a forked process; kill it when it is time. Return its exit status, 9 for killed."""
    process = os.fork()
    if process == 0:
        own_progress_bars()
        try:
            work()
        finally:
            os._exit(0)
    while not is_time():
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return status
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def is_killed(work: Callable[[], object], has_begun: Callable[[], bool], delay: float) -> bool:
    """Start `work` in a forked process, kill it some seconds after something began; return whether it still ran."""
    moment: float | None = None

    def is_time() -> bool:
        nonlocal moment
        if moment is None and has_begun():
            moment = time.monotonic() + delay
        return moment is not None and time.monotonic() >= moment

    return run_until(work, is_time) == signal.SIGKILL


def own_progress_bars(bars: type[tqdm] = tqdm) -> None:
    """Give this process locks of its own: all forks share tqdm's, which nobody gives back for one that is killed."""
    bars.set_lock(RLock())
    for each in bars.__subclasses__():
        own_progress_bars(each)


def wait_for(condition: Callable[[], object], seconds: float, message: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.05)
