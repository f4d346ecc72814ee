"""Runs that are killed, as by a power cut: SIGKILL at a state of their files, never by the clock."""

import os
import signal
import sys
import time
from collections.abc import Callable
from threading import RLock

from tqdm import tqdm


FILE_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}
"""Audit events of changes of files, besides "open" for writing: https://docs.python.org/3/library/audit_events.html."""


def is_killed(work: Callable[[], object], has_begun: Callable[[], bool], num_changes: int = 0) -> bool:
    """Start `work` in a forked process that kills itself at a change of files; return whether it did.

    Between two changes the files are the same, whenever a kill comes. So this is every state that a kill can leave,
    apart from half of a file, and it is the same on fast and on busy machines.

    Args:
        work: Run in the fork, whose other threads count too.
        has_begun: Called before each change. From the first one where it is true, changes are counted.
        num_changes: Changes that are still made. The next one is not.
    """
    process = os.fork()
    if process == 0:
        own_progress_bars()
        _kill_at_change(has_begun, num_changes)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


def _kill_at_change(has_begun: Callable[[], bool], num_changes: int) -> None:
    """Let this process kill itself as `is_killed` says."""
    process, lock, left = os.getpid(), RLock(), num_changes
    is_counting = is_asking = False

    def count(event: str, arguments: tuple) -> None:
        nonlocal left, is_counting, is_asking
        is_change = event in FILE_CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not is_change:
            return
        with lock:
            if is_asking:  # what `has_begun` itself does
                return
            is_asking = True
            is_counting = is_counting or has_begun()
            is_asking = False
            if is_counting:
                if left == 0:
                    os.kill(process, signal.SIGKILL)
                left -= 1

    sys.addaudithook(count)


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
