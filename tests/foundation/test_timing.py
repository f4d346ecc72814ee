import time

from foundation.timing import Clock, fastest_seconds


def test_clock_adds_up_phases_and_says_each(capsys):
    clock = Clock()
    for name in ("evaluate", "draw", "evaluate"):
        with clock.phase(name):
            pass
    assert list(clock.seconds) == ["evaluate", "draw"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["evaluate", "draw", "evaluate"]


def test_clock_reports_where_it_is_told_to():
    lines = []
    with Clock(lines.append).phase("train"):
        pass
    assert lines == ["train               0.0 s"]


def test_calls_take_turns_and_the_first_round_does_not_count(monkeypatch):
    now, order = [0.0], []
    durations = {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([0.5, 5.0, 6.0, 4.0])}
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(name):
        order.append(name)
        now[0] += next(durations[name])

    calls = {name: lambda name=name: run(name) for name in durations}
    assert fastest_seconds(calls, min_rounds=3) == {"a": 1.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_rounds_go_on_for_the_budget(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run():
        now[0] += 1.0

    fastest_seconds({"a": run}, min_rounds=1, budget_seconds=5.0)
    assert now[0] == 6.0  # one that does not count, then five
