"""Tables of what is refused: bad values, and the argument that the error names in backticks."""

import re
from collections.abc import Callable, Iterable

import pytest


def wrong(**values: Iterable[object]) -> pytest.MarkDecorator:
    """Run a test for each bad value of each argument, as `name` and `value`."""
    return pytest.mark.parametrize(("name", "value"), [(name, value) for name in values for value in values[name]])


def refused(name: str, call: Callable[[], object], error: type[Exception] = ValueError) -> None:
    """Check that a call ends in an error that names an argument."""
    with pytest.raises(error, match=f"`{re.escape(name)}`"):
        call()
