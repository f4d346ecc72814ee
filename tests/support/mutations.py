"""Changes at any place of nested values, as fuzz tests make them in parsed files."""

import copy
from typing import Any


def places_in(value: Any, path: tuple = ()) -> list[tuple]:
    """All places in nested containers, but for the outermost."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, entry in entries for place in places_in(entry, (*path, key))]
    return [*([path] if path else []), *below]


def changed(content: dict, changes: list[tuple[int, Any]]) -> dict:
    """Content with other values at some places, or without them where the value is `...`."""
    content = copy.deepcopy(content)
    for number, value in changes:
        places = places_in(content)
        if not places:
            break
        *path, last = places[number % len(places)]
        holder = content
        for key in path:
            holder = holder[key]
        if value is ...:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(value)
    return content
