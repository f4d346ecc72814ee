"""What cannot be timed is refused before any long work."""

import pytest

from benchmarks import compare_native, window_choice


@pytest.mark.parametrize("program", [compare_native, window_choice])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes=-5"], "`sizes` must have sides that are multiples of 16 and at most 2048 pixels, got -5 x -5"),
        (["--sizes=32,0"], "`sizes` must have sides that are multiples of 16 and at most 2048 pixels, got 0 x 0"),
        (["--sizes=100"], "The nearest valid size is 96 x 96"),
        (["--sizes=nan"], "`sizes` must be [an integer, ...], got ['nan']"),
        (["--sizes="], "`sizes` must be [an integer, ...], got ''"),
        (["--dtypes=float8"], "`dtypes` must be one of ['float32', 'bfloat16', 'float16'], got 'float8'"),
        (["--preset=radio_v9"], "`preset` must be one of "),
    ],
)
def test_what_cannot_be_timed_is_one_line(program, arguments, message, capsys):
    assert program.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
