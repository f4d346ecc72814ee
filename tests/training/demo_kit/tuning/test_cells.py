"""Cells say as much as there is to say."""

import pytest

from training.demo_kit.tuning.cells import difference, spread


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ("-", "-")), ([0.25], ("0.250", "+0.250")), ([0.1, 0.3], ("0.200 +- 0.141", "+0.200 +- 0.100"))],
)
def test_none_one_and_several_seeds(values, expected):
    assert (spread(values), difference(values)) == expected
