"""Calls take turns, and ratios are those of one round."""

import pytest

from benchmarks.measuring import turns
from benchmarks.measuring.turns import Turns, spread_of, take_turns


def test_calls_take_turns_and_every_other_round_is_reversed() -> None:
    calls: list[str] = []
    timed = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, min_rounds=3, budget_seconds=0)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # the first sets up
    calls.clear()
    take_turns(
        {name: lambda name=name: calls.append(name) for name in "ab"}, min_rounds=1, budget_seconds=0, warm_up=False
    )
    assert calls == ["a", "b"]
    assert {name: len(seconds) for name, seconds in timed.seconds.items()} == {"a": 3, "b": 3}


def test_rounds_go_on_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def run() -> None:
        now[0] += 2.0

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    assert take_turns({"a": run}, min_rounds=1, budget_seconds=5.0).seconds == {"a": [2.0, 2.0, 2.0]}


def test_a_ratio_is_the_median_of_those_of_each_round() -> None:
    timed = Turns({"ours": [0.1, 0.2, 0.4], "other": [0.2, 0.6, 0.4]})
    assert timed.milliseconds("ours") == 200
    assert timed.times_as_fast("ours", "other") == (2, 1.5, 2.5)
    assert str(timed.times_as_fast("ours", "other")) == "2.00 (1.50 to 2.50)"
    assert spread_of([3.0]) == (3, 3, 3)
