"""Checks and sizes that many files share; errors read `` `name` must be RULE, got VALUE. WHAT TO DO. ``."""

import difflib
import json
import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin


def did_you_mean(word: Any, choices: Collection[str], *, at_least: float = 0.6) -> str:
    """Return `" Did you mean ...?"`, or nothing if no choice is near: `at_least` is difflib's ratio, 1 for equal."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=at_least)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(
    name: str, value: Any, choices: Collection[str], *, error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse a value that is not one of the choices.

    Args:
        name: Argument or field with the value, as the user wrote it, for example `"views.teachers"`.
        value: The value.
        choices: All valid values.
        error: Class of what is raised, or a function that makes it of the message.

    Raises:
        error: If `value` is no choice; the message lists all and suggests the nearest.
    """
    if not isinstance(value, str) or value not in choices:
        raise error(f"`{name}` must be one of {list(choices)}, got {value!r}.{did_you_mean(value, choices)}")


_BUILTIN, _BUILTIN_PREFIX = Path(__file__).with_name("builtin"), "builtin:"


def find_builtin(source: Any) -> Any:
    """Return the folder that `builtin:NAME` means, a model in this package, and anything else as it is.

    Raises:
        ValueError: If this package has no such model.
    """
    if not str(source).startswith(_BUILTIN_PREFIX) or not _BUILTIN.is_dir():  # remote code has none
        return source
    name = str(source).removeprefix(_BUILTIN_PREFIX)
    check_choice("builtin", name, sorted(path.name for path in _BUILTIN.iterdir()))
    return str(_BUILTIN / name)


SAME_TEACHER = (
    ("dino_v3_7b", "dino_v3", "dinov3_vit7b16"),
    ("siglip2-g", "siglip2-g-384"),
    ("siglip2", "siglip2-so400m"),
)
"""Each row has the names of one teacher: in files, in NVIDIA's README if it differs, and NVIDIA's name of its network.

An adaptor has the name that its file gives it. `siglip2` and `siglip2-g` are two teachers, with two text towers.
"""


def own_name(name: str, names: Collection[str]) -> str:
    """Return the one of `names` that is the same teacher by `SAME_TEACHER`, or the given name where there is none."""
    same = next((group for group in SAME_TEACHER if name in group), ())
    found = [other for other in same if other in names]
    return found[0] if name not in names and len(found) == 1 else name


def own_names(argument: str, asked: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the names that a file gives to the adaptors that a call asks for, each once.

    A warning names each that the caller wrote in another way. Unknown names stay as they are; the caller refuses them.

    Args:
        argument: Name of the argument, for the warning.
        asked: Names that the user wrote.
        names: Names in the file.
    """
    found = {name: own_name(name, names) if isinstance(name, str) else name for name in asked}
    for name, own in found.items():
        if own != name:
            warnings.warn(f"`{argument}`: took {own!r}, as this file calls it, for {name!r}.", stacklevel=3)
    return list(dict.fromkeys(found.values()))


def check_blocks(name: str, blocks: Sequence[int], depth: int, *, count: int | None = None) -> None:
    """Refuse block numbers that do not ascend or do not exist.

    Args:
        name: Argument or field that lists them.
        blocks: 0-based blocks.
        depth: Number of blocks of the network.
        count: Required number; a block may then stand there more than once, since shallow networks have fewer.
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


LARGEST = 2**20
"""Largest width, size or count (our choice: far above any network): what is mistyped fails here, not in memory."""
MOST_BLOCKS = 1000
"""Largest number of blocks in a row (our choice, for the same reason: each one is a module)."""


def in_words(kind: Any) -> str:
    """Return what values of a type are in words, for example "an integer or None"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, parts)))
    if origin is Annotated:
        return in_words(parts[0])
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list, each {in_words(parts[0])}"
    words = {int: "an integer", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    return words.get(kind, "a mapping" if (origin or kind) is dict else getattr(kind, "__name__", str(kind)))


@dataclass(frozen=True)
class Rule:
    """A rule for one value.

    Attributes:
        text: The same in words, which follow "must be".
        holds: Whether a value, of any type, is right.
    """

    text: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` that names `name`, the value and the rule, unless the rule holds."""
        if not self.holds(value):
            raise ValueError(f"`{name}` must be {self.text}, got {value!r:.200}.")


def integer(low: int, high: int = LARGEST) -> Rule:
    """Return the rule of an integer within bounds, both included."""
    return Rule(
        f"an integer in [{low}, {high}]",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def number(interval: str) -> Rule:
    """Return the rule of a finite number within an interval, for example `"[0, 1)"`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return False
        return (interval[0] == "[" or value > low) and (interval[-1] == "]" or value < high)

    return Rule(f"a number in {interval}", holds)


def optional(rule: Rule) -> Rule:
    """Return a rule that also allows `None`."""
    return Rule(f"{rule.text} or None", lambda value: value is None or rule.holds(value))


def listed(rule: Rule, count: int | None = None) -> Rule:
    """Return the rule of a list whose entries keep a rule, `count` of them or any number."""
    text = f"a list of which each entry is {rule.text}" if count is None else f"a list of {count}, each {rule.text}"

    def holds(value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and (count is None or len(value) == count)
        return is_list and all(map(rule.holds, value))

    return Rule(text, holds)


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
WORD = Rule("a string", lambda value: isinstance(value, str))
MAPPING = Rule("a mapping", lambda value: isinstance(value, dict))
COUNT = integer(1)
WINDOW = Rule(
    "an integer of at least 1 (tokens), 'auto' or 'global'",
    lambda value: COUNT.holds(value) or (isinstance(value, str) and value in ("auto", "global")),
)


class Resolution(NamedTuple):
    """A height and a width, in pixels or in patches."""

    height: int
    width: int


def round_to_step(size: float, step: int) -> int:
    """Return the multiple of `step` nearest to `size`, at least one; of two as near the even one, as NVIDIA's code."""
    return max(round(size / step), 1) * step


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows that cover a length; the last window ends at its end."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def mlp_ratio_for(intermediate_size: int, hidden_size: int) -> float:
    """Return the smallest number whose product with `hidden_size` truncates to `intermediate_size`.

    transformers' native RADIO, timm and NVIDIA's code have no width of the MLP, they compute it from this ratio.
    """
    ratio = intermediate_size / hidden_size
    while int(hidden_size * ratio) < intermediate_size:
        ratio = math.nextafter(ratio, math.inf)
    while int(hidden_size * math.nextafter(ratio, 0)) == intermediate_size:
        ratio = math.nextafter(ratio, 0)
    return ratio


def nearest_multiple(height: float, width: float, step: int, largest: int) -> Resolution:
    """Return the size nearest to `height` x `width` pixels whose sides are multiples of `step`, at most `largest`."""
    limit = largest // step * step
    return Resolution(*(min(round_to_step(side, step), limit) for side in (height, width)))


def check_multiple(name: str, height: int, width: int, step: int, largest: int) -> None:
    """Refuse a size with a side that is no positive multiple of `step`, or longer than `largest` pixels.

    Args:
        name: Argument or field with the size, as the message begins, for example "`size`".
        height: Height in pixels.
        width: Width in pixels.
        step: Number of which both must be multiples.
        largest: Longest side.

    Raises:
        ValueError: It names the nearest valid size.
    """
    if height % step or width % step or not height or not width or max(height, width) > largest:
        nearest = nearest_multiple(height, width, step, largest)
        raise ValueError(
            f"{name} must have sides that are multiples of {step} and at most {largest} pixels, got "
            f"{height} x {width}. The nearest valid size is {nearest.height} x {nearest.width}."
        )


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    largest = sys.float_info.max  # compared, since an integer may be too large to become a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ValueError: If it holds another thing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {content!r:.60}.")
    return content
