"""Python objects that settings name, `module:name`."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from modeling_radio.checks_radio import check_choice


T = TypeVar("T")

_PATH = re.compile(r"(\w+(?:\.\w+)*):([^\W\d]\w*)")


def is_import_path(name: str) -> bool:
    """Return whether a name is meant as an object to import; names of registries have no colon."""
    return ":" in name


def is_object_path(text: str) -> bool:
    """Return whether a text has the form of an import path and is no file, for settings that also name files.

    A data set of the Hub without an organization, with a configuration, is written `hub:NAME:CONFIGURATION`.
    """
    return _PATH.fullmatch(text) is not None and not Path(text).exists()


def import_object(
    name: str,
    argument: str,
    *,
    beside: Path | None = None,
    error: Callable[[str], Exception] = ValueError,
    value: str | None = None,
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
        value: The setting's value, if it is a name that stands for this path.

    Raises:
        ValueError: Or `error`, if the name has another form, or there is no such module or object.
    """
    said = f"`{argument}` {value or name!r}"
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
        raise error(f"{said} cannot be imported: {cause}. Searched too: {searched}.") from cause
    if object_name not in members:
        raise error(f"{said} cannot be imported: {module_name} has no {object_name!r}.")
    return members[object_name]


def find_object(
    name: str, registry: Mapping[str, Any], argument: str, *, error: Callable[[str], Exception] = ValueError
) -> Any:
    """Return the object of a name: that of a registry, or of an import path.

    Args:
        name: A key of the registry, or as for `import_object`.
        registry: Objects by name. Texts are import paths, whose modules are only imported when they are asked for.
        argument: Setting that names it, for messages.
        error: Class of errors.

    Raises:
        ValueError: Or `error`, if the name is not in the registry, or as `import_object`.
    """
    if name not in registry and is_import_path(name):
        return import_object(name, argument, error=error)
    check_choice(argument, name, registry, error=error)
    found = registry[name]
    return import_object(found, argument, error=error, value=name) if isinstance(found, str) else found


def find_function(name: str, registry: Mapping[str, T | str], argument: str) -> T:
    """Return the function of a name: that of a registry, or of an import path.

    Args:
        name: A key of the registry, or as for `import_object`.
        registry: Functions by name, or their import paths.
        argument: Setting that names it, for messages.

    Raises:
        ValueError: As `import_object`, or if the object cannot be called.
    """
    found = find_object(name, registry, argument)
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
