"""The error that a command shows as one line; suggestions and checks of choices, in the words of `modeling_radio`.

That package imports transformers, which takes seconds: it is imported on errors only, so that `--help` is fast.
"""

from collections.abc import Collection, Sequence
from typing import Any


class UserError(Exception):
    """Something that the user can mend, where no built-in error fits; the message is one line that says how."""


def first_few(items: Sequence[Any], most: int) -> str:
    """Return the first items in words, with `...` where there are more than `most`."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")


def did_you_mean(word: Any, choices: Collection[str]) -> str:
    """Return `" Did you mean ...?"`, or nothing if no choice is near."""
    from modeling_radio.checks_radio import did_you_mean as find

    return find(word, choices)


def check_choice(name: str, value: Any, choices: Collection[str], *, error: type[Exception] = ValueError) -> None:
    """Refuse a value that is none of the choices, as `modeling_radio.checks_radio.check_choice`."""
    if value not in choices:
        from modeling_radio.checks_radio import check_choice as check

        check(name, value, choices, error=error)
