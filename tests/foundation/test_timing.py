from foundation.timing import Clock


def test_clock_adds_up_phases_and_says_each(capsys):
    clock = Clock()
    for name in ("evaluate", "draw", "evaluate"):
        with clock.phase(name):
            pass
    assert list(clock.seconds) == ["evaluate", "draw"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["evaluate", "draw", "evaluate"]
