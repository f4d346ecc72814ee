import platform
import time

import pytest

from modeling_radio.core.timing import Clock, Phase, ProgressBar, WholeRun, describe_run, fastest_seconds


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is told to go on."""
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_calls_take_turns_and_the_first_round_does_not_count(now):
    order, durations = [], {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([0.5, 5.0, 6.0, 4.0])}

    def run(name):
        order.append(name)
        now[0] += next(durations[name])

    calls = {name: lambda name=name: run(name) for name in durations}
    assert fastest_seconds(calls, num_rounds=3) == {"a": 1.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_a_whole_run_tells_the_time_left_at_the_speed_of_this_machine(now):
    phases = [
        Phase("fetch", 10.0, "fetch images", tells_speed=False),
        Phase("references", 10.0, "measure"),
        Phase("distil", 100.0, "train"),
        Phase("evaluate", 20.0, "measure"),
    ]
    with WholeRun(phases, is_shown=False) as run:
        assert run.seconds_left == 140.0
        with run.phase("fetch"):
            now[0] += 4.0
            assert run.seconds_left == 136.0, "it counts down while nothing reports"
            now[0] += 96.0
        assert run.seconds_left == 130.0, "a slow network does not make a slow machine"
        with run.phase("references"):
            now[0] += 20.0  # half as fast as expected
        assert run.seconds_left == 240.0
        with run.phase("distil"):
            for _ in ProgressBar(range(4), desc="distil"):
                now[0] += 50.0
        assert run.seconds_left == 40.0
        with run.phase("evaluate"):
            pass
        assert run.seconds_left == 0.0
    assert run.seconds == {"fetch": 100.0, "references": 20.0, "distil": 200.0, "evaluate": 0.0}
    with WholeRun([Phase("distil", 100.0, "train")], is_shown=False) as run:
        bar = ProgressBar(total=100, initial=80, desc="distil")
        for _ in range(10):  # the first update says where it is
            bar.update(1)
            now[0] += 2.0
    assert run.slowness == pytest.approx(2.0)


def test_bars_inside_a_whole_run_are_silent_and_alone_tqdms_own(capfd):
    def work():
        with ProgressBar(range(3), desc="classes of masks") as bar:
            assert list(bar) == [0, 1, 2]
            bar.say("a remark")
        return capfd.readouterr()

    with WholeRun([Phase("work", 1.0, "do the work")], is_shown=True):
        inside = work()
    assert "classes of masks" not in inside.err
    assert "1 of 1: do the work" in inside.err
    assert inside.out == ""
    alone = work()
    assert "classes of masks: 100%" in alone.err
    assert alone.out.strip() == "a remark"
    with WholeRun([Phase("work", 1.0, "do the work")]) as run, run.phase("work"):  # where no terminal is
        pass
    assert capfd.readouterr().out.split()[0] == "work"


def test_a_run_is_described_by_plain_values(monkeypatch):
    clock = Clock(seconds={"distil": 1.26})
    monkeypatch.setattr(clock.energy, "kwh", dict)
    run = describe_run("make demo", clock)
    assert run["command"] == "make demo"
    assert run["seconds"] == {"distil": 1.3}
    assert run["versions"]["python"] == platform.python_version()
    assert " cores" in run["machine"]
    assert "energy_kwh" not in run
    monkeypatch.setattr(clock.energy, "kwh", lambda: {"GPUs": 1.0, "processors": 0.23456})
    run = describe_run("make demo", clock)
    assert (run["energy_kwh"], run["energy_of"]) == (1.23, "GPUs and processors")
