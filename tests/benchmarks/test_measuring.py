"""Calls take turns, ratios are those of one round, memory is that of a call, and results are stored and replaced."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import measuring
from benchmarks.measuring import (
    ROOT,
    MeasuringSettings,
    Placement,
    StepProcess,
    Turns,
    count_flops,
    describe_machine,
    load_results,
    measure_peak,
    peak_mb_of,
    report,
    spread_of,
    take_step_turns,
    take_turns,
)


def test_calls_take_turns_and_every_other_round_is_reversed() -> None:
    calls: list[str] = []
    timed = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, min_rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # the first sets up
    calls.clear()
    take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, min_rounds=1, warm_up=False)
    assert calls == ["a", "b"]
    assert {name: len(seconds) for name, seconds in timed.seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_those_of_each_round() -> None:
    timed = Turns({"ours": [0.1, 0.2, 0.4], "other": [0.2, 0.6, 0.4]})
    assert timed.milliseconds("ours") == 200
    assert timed.times_as_fast("ours", "other") == (2, 1.5, 2.5)
    assert str(timed.times_as_fast("ours", "other")) == "2.00 (1.50 to 2.50)"
    assert spread_of([3.0]) == (3, 3, 3)


def fill(num_bytes: int) -> int:
    """Hold some memory for a moment."""
    return int(np.ones(num_bytes, dtype=np.uint8).sum())


def test_memory_is_that_of_a_call_and_not_of_what_was_before() -> None:
    fill(2**27)
    small, large = (peak_mb_of(lambda size=size: fill(size)) for size in (2**20, 2**26))
    assert large - small == pytest.approx((2**26 - 2**20) / 1e6, abs=8)


def test_operations_are_counted_and_the_peak_is_measured() -> None:
    left, right = torch.rand(8, 16), torch.rand(16, 4)
    assert count_flops(lambda: left @ right) == 2 * 8 * 16 * 4
    assert measure_peak(Placement(), side=64) > 0


LOOP = """
import time
from benchmarks.steps import Stepper
stepper = Stepper(2)
while True:
    print("not an answer")
    time.sleep(0.01)
    open({count!r}, "a").write(".")
    stepper.end_step()
"""


def test_processes_run_as_many_steps_as_are_asked_for_in_turns(tmp_path: Path) -> None:
    counts = [tmp_path / "a", tmp_path / "b"]
    loops = {
        count.name: StepProcess("loop", [sys.executable, "-c", LOOP.format(count=str(count))], ROOT) for count in counts
    }
    assert [count.read_text() for count in counts] == ["..", ".."]
    timings = take_step_turns(loops, rounds=2, num_steps=3, stays="a")
    assert all(timing["wall"] >= 0.01 for each in timings.values() for timing in each)
    assert [count.read_text() for count in counts] == [8 * ".", 8 * "."]
    loops["a"].time(1)
    loops["a"].close()
    with pytest.raises(RuntimeError, match="'loop' ended with status 3"):
        StepProcess("loop", [sys.executable, "-c", "raise SystemExit(3)"], ROOT)


def test_what_is_reported_is_read_again_and_replaces_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    settings, rows = MeasuringSettings(), [{"size_px": 224, "ours, ms": 1.5}, {"size_px": 512, "native, ms": 2.5}]
    report(settings, "inference", "speed", "tiny", [{"size_px": 224, "ours, ms": 9.5}])
    report(settings, "inference", "memory", "tiny", [])
    path = report(settings, "inference", "speed", "tiny", rows, {"float32, GFLOP/s": 7})
    printed = capsys.readouterr().out
    assert "| size_px | ours, ms | native, ms |" in printed
    assert "| 512 |  | 2.5 |" in printed
    memory, speed = load_results(path)
    assert (memory.table, speed.subject, speed.rows, speed.facts) == ("memory", "tiny", rows, {"float32, GFLOP/s": 7})
    assert speed.machine == describe_machine()
    assert [each.name for each in tmp_path.iterdir()] == ["inference.jsonl"]
    monkeypatch.setattr(measuring, "QUICK_RESULTS", tmp_path / "quick")  # a quick run replaces nothing
    assert report(MeasuringSettings(quick=True), "inference", "speed", "tiny", []).parent == tmp_path / "quick"
    assert len(load_results(path)) == 2
