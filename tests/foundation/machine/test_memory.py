"""Peak memory of a process."""

import mmap

import numpy as np
import pytest

from core.machine import STATUS, peak_memory_mb


@pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")
def test_memory_is_the_largest_that_the_process_had():
    before = peak_memory_mb()
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:")]
    free_mb = before - int(line.split()[1]) * 1024 / 1e6
    with mmap.mmap(-1, int((free_mb + 100) * 1e6)) as held:  # pages of its own: what was freed before is not used again
        pages = np.frombuffer(held, np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages
    assert peak_memory_mb() - before == pytest.approx(100, abs=30)
