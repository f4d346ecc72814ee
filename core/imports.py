"""Python objects that settings name, `module:name`."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast


T = TypeVar("T")

_PATH = re.compile(r"(\w+(?:\.\w+)*):([^\W\d]\w*)")


def is_import_path(name: str) -> bool:
    """Return whether a name is meant as an object to import; names of registries have no colon."""
    return ":" in name


def import_object(
    name: str, argument: str, *, beside: Path | None = None, error: Callable[[str], Exception] = ValueError
) -> Any:
    """Return an object by its import path.

    Its module is one of those that Python finds, else a file or a package in the working directory, else in `beside`.
    These two are searched last and only while the module is imported, so that nothing in them takes the place of an
    installed module.

    Args:
        name: "my_package.my_module:my_object".
        argument: Setting that names it, for messages.
        beside: Folder of the file that names it.
        error: Class of errors.

    Raises:
        ValueError: Or `error`, if the name has another form, or there is no such module or object.
    """
    found = _PATH.fullmatch(name)
    if found is None:
        raise error(f"`{argument}` must be an import path such as 'my_package.my_module:my_object', got {name!r}.")
    module_name, object_name = found.groups()
    folders = [Path.cwd(), *([beside.resolve()] if beside is not None else [])]
    try:
        with _searched_last(folders):
            members = vars(importlib.import_module(module_name))
    except (ImportError, SyntaxError) as cause:
        searched = " and ".join(map(str, folders))
        raise error(f"`{argument}` {name!r} cannot be imported: {cause}. Searched too: {searched}.") from cause
    if object_name not in members:
        raise error(f"`{argument}` {name!r} cannot be imported: {module_name} has no {object_name!r}.")
    return members[object_name]


def find_function(name: str, registry: Mapping[str, T], argument: str) -> T:
    """Return the function of a name: that of a registry, or of an import path.

    Args:
        name: A key of the registry, or as for `import_object`.
        registry: Functions by name.
        argument: Setting that names it, for messages.

    Raises:
        ValueError: As `import_object`, or if the object cannot be called.
    """
    if not is_import_path(name):
        return registry[name]
    found = import_object(name, argument)
    if not callable(found):
        raise ValueError(f"`{argument}` must be a function, got {name!r}, a {type(found).__name__}.")
    return cast("T", found)


@contextmanager
def _searched_last(folders: list[Path]) -> Iterator[None]:
    added = [text for text in dict.fromkeys(map(str, folders)) if text not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for text in added:
            sys.path.remove(text)
