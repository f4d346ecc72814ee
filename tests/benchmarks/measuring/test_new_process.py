"""What runs in a new process, and what memory is counted."""

import os

import numpy as np
import pytest

from benchmarks.measuring.new_process import peak_mb_of, run_anew


def fill(num_bytes: int) -> list[int]:
    """Hold some memory for a moment; return the sum of it and this process's number."""
    return [int(np.ones(num_bytes, dtype=np.uint8).sum()), os.getpid()]


def test_memory_is_that_of_a_call_and_not_of_what_was_before() -> None:
    fill(2**27)
    small, large = (peak_mb_of(lambda size=size: fill(size)) for size in (2**20, 2**26))
    assert large - small == pytest.approx((2**26 - 2**20) / 1e6, abs=8)


def test_a_new_process_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    small, large = run_anew(fill, 2**20), run_anew(fill, 2**27)
    assert small.value[0] == 2**20
    assert len({os.getpid(), small.value[1], large.value[1]}) == 3
    assert large.peak_mb - small.peak_mb == pytest.approx((2**27 - 2**20) / 1e6, abs=8)
    assert small.seconds > 0


def test_its_error_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    with pytest.raises(RuntimeError, match=r"fill\(-1,\) ended with status 1; see above"):
        run_anew(fill, -1)
    assert "negative dimensions" in capfd.readouterr().err
