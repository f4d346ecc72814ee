"""Checks that many files share, and the one form of their errors: `` `name` must be RULE, got VALUE. WHAT TO DO. ``."""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any


def did_you_mean(word: Any, choices: Collection[str], *, at_least: float = 0.6) -> str:
    """Return `" Did you mean ...?"`, or nothing if no choice is near: `at_least` is difflib's ratio, 1 for equal."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=at_least)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(
    name: str, value: Any, choices: Collection[str], *, error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: What has the value, as the user wrote it, for example `"views.teachers"`.
        value: The value.
        choices: All valid values.
        error: Class of what is raised, or a function that makes it of the message.

    Raises:
        error: If `value` is no choice; the message lists all and suggests the nearest.
    """
    if not isinstance(value, str) or value not in choices:
        raise error(f"`{name}` must be one of {list(choices)}, got {value!r}.{did_you_mean(value, choices)}")


def check_blocks(name: str, blocks: Sequence[int], depth: int, *, count: int | None = None) -> None:
    """Refuse block numbers that do not ascend or do not exist.

    Args:
        name: What lists them.
        blocks: 0-based blocks.
        depth: Number of blocks of the network.
        count: How many there must be; a block may then stand there more than once, since shallow networks have fewer.
            None takes any number from 1, all different.

    Raises:
        ValueError: If the list is empty or of another length, does not ascend, leaves [0, depth) or holds something
            else than integers.
    """
    if not isinstance(blocks, Sequence) or not all(type(block) is int for block in blocks):
        raise ValueError(f"`{name}` must be a list of integers, got {blocks!r}.")
    is_ascending = list(blocks) == sorted(blocks if count else set(blocks))
    is_counted = bool(blocks) if count is None else len(blocks) == count
    if not (is_ascending and is_counted and all(0 <= block < depth for block in blocks)):
        number = "" if count is None else f"{count} "
        raise ValueError(f"`{name}` must be {number}ascending blocks in [0, {depth}), got {list(blocks)}.")
