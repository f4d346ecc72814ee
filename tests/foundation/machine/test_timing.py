import time

import pytest

from core.timing import Clock, ProgressBar, WholeRun, fastest_seconds


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


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is told to go on."""
    time_of_day = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: time_of_day[0])
    return time_of_day


def test_a_whole_run_tells_the_time_left_at_the_speed_of_this_machine(now):
    with WholeRun([("fetch", 10.0), ("distil", 100.0), ("evaluate", 20.0)], is_shown=False) as run:
        assert run.seconds_left == 130.0
        with run.phase("fetch"):
            now[0] += 20.0  # half as fast as expected
        assert run.seconds_left == 240.0
        with run.phase("distil"):
            for _ in ProgressBar(range(4), desc="distil"):
                now[0] += 50.0
        assert run.seconds_left == 40.0
        assert run.share_done == pytest.approx(220 / 260)
        with run.phase("evaluate"):
            pass
        assert run.seconds_left == 0.0
    assert run.seconds == {"fetch": 20.0, "distil": 200.0, "evaluate": 0.0}


def test_a_phase_that_begins_in_its_middle_does_not_look_fast(now):
    with WholeRun([("distil", 100.0)], is_shown=False) as run:
        bar = ProgressBar(total=100, initial=80, desc="distil")
        bar.update(1)  # the first says where it is
        for _ in range(9):
            now[0] += 2.0
            bar.update(1)
    assert run.slowness == pytest.approx(2.0)
    assert run.seconds_left == pytest.approx(20.0)


def test_phases_come_again_and_may_be_passed_over():
    phases = [("teacher features", 50.0), ("distil", 100.0), ("evaluate", 20.0), ("distil", 100.0), ("evaluate", 20.0)]
    with WholeRun(phases, is_shown=False) as run:
        run.TELLING_SHARE = 2.0  # never: of a machine as expected
        with run.phase("distil"):  # answers of teachers are there already
            assert run.seconds_left == 240.0
            run.show("teacher features", 0.5)  # or are not
            assert run.seconds_left == 265.0
            run.show("distil", 0.5)
            assert run.seconds_left == 190.0
        with run.phase("evaluate"):
            pass
        with run.phase("distil"):
            assert run.seconds_left == 120.0


def test_inside_a_whole_run_other_bars_are_silent(capfd):
    with WholeRun([("work", 1.0)], is_shown=True), ProgressBar(range(3), desc="classes of masks") as bar:
        assert list(bar) == [0, 1, 2]
        bar.say("a remark")
    captured = capfd.readouterr()
    assert "classes of masks" not in captured.err
    assert "work" in captured.err
    assert "left" in captured.err
    assert captured.out == ""


def test_a_bar_alone_is_tqdms_own(capfd):
    with ProgressBar(range(3), desc="classes of masks") as bar:
        assert list(bar) == [0, 1, 2]
        bar.say("a remark")
    captured = capfd.readouterr()
    assert "classes of masks: 100%" in captured.err
    assert captured.out.strip() == "a remark"


def test_where_no_terminal_is_a_whole_run_reports_its_phases(capsys):
    with WholeRun([("work", 1.0)]) as run, run.phase("work"):
        pass
    assert capsys.readouterr().out.split()[0] == "work"
