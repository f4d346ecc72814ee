"""The error that a command shows as one line."""

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something that the user can mend, where no built-in error fits; the message is one line that says how."""


def first_few(items: Sequence[Any], most: int) -> str:
    """Return the first items in words, with `...` where there are more than `most`."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
