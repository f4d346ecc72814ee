"""A killed process holds no lock that the others need."""

import signal
import time

from killing import run_until
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock


def test_a_process_killed_while_it_draws_a_progress_bar_stops_nobody(tmp_path):
    def draw():
        with tqdm.get_lock():
            (tmp_path / "drawing").touch()
            time.sleep(60)

    TqdmDefaultWriteLock.create_mp_lock()  # what all forks share
    tqdm.set_lock(TqdmDefaultWriteLock())
    assert run_until(draw, (tmp_path / "drawing").exists) == signal.SIGKILL
    assert TqdmDefaultWriteLock.mp_lock.acquire(timeout=1)
    TqdmDefaultWriteLock.mp_lock.release()
