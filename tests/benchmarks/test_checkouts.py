"""Sums of the comparison of two checkouts, and what is no checkout."""

import pytest

from benchmarks import checkouts
from benchmarks.measuring.step_process import Timing


def timing(wall: float, cpu: float) -> Timing:
    return {"wall": wall, "cpu": cpu, "passes": wall / 2}


def test_ratios_are_medians_of_those_of_each_round() -> None:
    rounds = {
        "present": [timing(0.1, 0.2), timing(0.2, 0.4), timing(0.4, 0.2)],
        "other": [timing(0.2, 0.2), timing(0.6, 0.4), timing(0.4, 0.4)],
    }
    present, other = checkouts.summarize(rounds)
    assert present["wall, ms"] == 200
    assert present["passes, ms"] == 100
    assert present["ratio of wall times"] == 1
    assert other["ratio of wall times"] == 2
    assert other["ratio of CPU times"] == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--against=nowhere", "`against` must be the root of a checkout of this project, got 'nowhere'"),
        ("--rounds=0", "`rounds` must be "),
        ("--num-images=10", "`num_images` must be "),
    ],
)
def test_what_cannot_be_timed_is_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkouts.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
