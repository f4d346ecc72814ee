"""What the declaration of a setting says in words, and how a text becomes its value."""

import inspect
import itertools
import re
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Mark(str):
    """A property of a field that is no rule, for example whether it may change between two sessions of a run."""


@dataclass(frozen=True)
class OneOf:
    """A text, or each of a list of them, must be one of these.

    A registry may be given, whose keys are meant.
    """

    choices: Collection[str]


@dataclass(frozen=True)
class Spelling:
    """How a field is written on a command line where that is not YAML.

    Attributes:
        read: Makes a value of the text, or raises a `ValueError`.
        form: What such a text looks like, alternatives separated by "|".
    """

    read: Callable[[str], Any]
    form: str


def read_names(text: str) -> list[str] | None:
    """Return the names that a spelling `A,B|all|none` lists; None stands for all."""
    if text == "all":
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",")]


_YAML_WORDS = {"None": "null", "True": "true", "False": "false"}
_PYTHON_WORDS = re.compile(r"\b(None|True|False)\b")
_NULLS = ("null", "Null", "NULL", "~")


class Setting(NamedTuple):
    """One line of a list of all settings.

    Attributes:
        path: As it is set, for example `optimizer.learning_rate` or `teachers.NAME.kind`.
        field: Its declaration.
        text: What the docstring says of it.
    """

    path: str
    field: FieldInfo
    text: str


def list_settings(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield all settings of a class and its sections, in the order of their declaration."""
    texts = field_texts(model)
    for name, field in model.model_fields.items():
        section, entry = section_of(field.annotation), entry_of(field.annotation)
        if section is not None:
            yield from list_settings(section, f"{prefix}{name}.")
        elif entry is not None:
            label = "NAME" if "name" in entry.model_fields else "NUMBER"
            yield from list_settings(entry, f"{prefix}{name}.{label}.")
        else:
            yield Setting(prefix + name, field, texts.get(name, ""))


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a class and of those it inherits from say of each field, with values as in YAML."""
    texts: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        text = inspect.cleandoc(parent.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
        texts.update((name, " ".join(lines.split())) for name, lines in entries if name in model.model_fields)
    return {name: _PYTHON_WORDS.sub(lambda word: _YAML_WORDS[word[0]], text) for name, text in texts.items()}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a field that is a section of its own."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def entry_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of the entries where a field is a list of sections."""
    return section_of(get_args(annotation)[0]) if get_origin(annotation) is list else None


def kinds_of(annotation: Any) -> set[type]:
    """Return the classes of values that a field may have; the items of lists are not looked at."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(arguments[0])
    if origin in (Union, types.UnionType):
        return set().union(*(kinds_of(part) for part in arguments))
    if origin is Literal:
        return {type(choice) for choice in arguments}
    return {origin or annotation}


def item_kinds_of(annotation: Any) -> set[type]:
    """Return the classes of values that the items of a list may have; nothing for what can be no list."""
    parts = [part for part in _parts(annotation) if get_origin(part) in (list, tuple)]
    return set().union(*(kinds_of(item) for part in parts for item in get_args(part) if item is not ...))


def literals_of(annotation: Any) -> list[Any]:
    """Return the values that a type names one by one."""
    return [choice for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def choices_of(field: FieldInfo) -> list[Any] | None:
    """Return all values that a field may have where they can be listed, without null."""
    for rule in field.metadata:
        if isinstance(rule, OneOf):
            return list(rule.choices)
    is_listed = all(part is types.NoneType or get_origin(part) is Literal for part in _parts(field.annotation))
    return literals_of(field.annotation) if is_listed else None


def describe_type(field: FieldInfo) -> str:
    """Return what a field may be in words, for example "a number above 0, or null"."""
    choices, bounds = choices_of(field), _bounds_rule(field.metadata)
    form = next((rule.form for rule in field.metadata if isinstance(rule, Spelling)), None)
    parts = [part for part in _parts(field.annotation) if part is not types.NoneType]
    if form is not None:
        text = form.replace("|", " or ")
    elif choices is not None:
        text = f"one of {choices}" if kinds_of(field.annotation).isdisjoint({list, tuple}) else f"some of {choices}"
    else:
        text = " or ".join(_type_words(part) for part in parts) + (f" {bounds}" if bounds else "")
    return f"{text}, or null" if types.NoneType in kinds_of(field.annotation) else text


def read_text(text: str, field: FieldInfo | None) -> Any:
    """Return the value that a text on the command line stands for: YAML, but for these.

    What can be text only is taken as it is, so that a folder may be called 001 or `exp #2`; there only null and quotes
    around the text are YAML's. A list may be written `a,b,c`. A field with a `Spelling` has its own.

    Args:
        text: What the user wrote.
        field: The declaration of the field; None for one that is not declared, as in a mapping of free keys.

    Raises:
        ValueError: If it is not YAML.
    """
    if field is None:
        return read_yaml(text)
    for rule in field.metadata:
        if isinstance(rule, Spelling):
            return _read_spelling(text, rule)
    kinds = kinds_of(field.annotation)
    if kinds <= {str, Path, types.NoneType}:
        is_null = text in _NULLS or (not text and Path not in kinds)  # an empty path is rather a shell's unset variable
        return None if is_null else _without_quotes(text)
    value = read_yaml(text)
    if text == "None" and types.NoneType in kinds:
        return text  # not a list of that name: the check of the field says what to write
    is_list = not kinds.isdisjoint({list, tuple})
    if is_list and isinstance(value, str | int | float) and (str not in kinds or "," in text):
        return [item.strip() for item in text.split(",")]
    return value


def _without_quotes(text: str) -> str:
    """Return what a text in quotes says; any other as it is."""
    if not text.startswith(("'", '"')):
        return text
    try:
        value = read_yaml(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _read_spelling(text: str, rule: Spelling) -> Any:
    try:
        return rule.read(text)
    except ValueError:
        return read_yaml(text)  # a list as in a file, or no valid value: the error names the form


MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_CHARACTERS = 1_000_000
"""Our choices: far beyond what anybody writes, so that aliases of aliases cannot fill the memory."""


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which 1e-3 is a number, a date is text, and no key stands twice."""

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """Return the value of a scalar whose tag may have been written by hand."""
        try:
            return yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, LookupError) as error:
            tag = node.tag.rpartition(":")[2]
            problem = f"{node.value[:40]!r} is no value of the type {tag!r}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        is_mapping = isinstance(node, yaml.MappingNode)  # a tag may say so of a scalar, which is refused below
        keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str)) if is_mapping else {}
        for key, count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag in (f"{_TAG}seq", f"{_TAG}map", f"{_TAG}str", None)
} | {f"{_TAG}{name}": _Loader.construct_plain for name in ("null", "bool", "int", "float")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds, keys of mappings as texts.

    Raises:
        ValueError: If it is not YAML; the message is one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"not YAML of at most {MAX_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  it knows plain values alone, fewer than yaml.SafeLoader
        return _with_text_keys(value, MAX_DEPTH, itertools.count())
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"not YAML: it is nested deeper than {MAX_DEPTH} levels") from error


def _with_text_keys(value: Any, depth_left: int, count: Iterator[int]) -> Any:
    """Return a copy in which no two places share a value, however often aliases name it."""
    if depth_left < 0:
        raise RecursionError
    if next(count) > MAX_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MAX_VALUES:,} values")
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(entry, depth_left - 1, count) for key, entry in value.items()}
    return [_with_text_keys(entry, depth_left - 1, count) for entry in value] if isinstance(value, list) else value


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the one type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _bounds_rule(metadata: Sequence[Any]) -> str:
    """Return the range of a number in words, for example "above 0" or "in [0, 1)"; empty where there is none."""
    words, low, high = [], None, None
    for rule in metadata:
        if isinstance(rule, Ge | Gt):
            is_closed, value = isinstance(rule, Ge), rule.ge if isinstance(rule, Ge) else rule.gt
            words.append(f"of at least {value}" if is_closed else f"above {value}")
            low = f"[{value}" if is_closed else f"({value}"
        elif isinstance(rule, Le | Lt):
            is_closed, value = isinstance(rule, Le), rule.le if isinstance(rule, Le) else rule.lt
            words.append(f"of at most {value}" if is_closed else f"below {value}")
            high = f"{value}]" if is_closed else f"{value})"
    return f"in {low}, {high}" if low and high else " and ".join(words)


def _type_words(part: Any) -> str:
    origin, arguments = get_origin(part), get_args(part)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is Annotated:
        return f"{_type_words(arguments[0])} {_bounds_rule(arguments[1:])}".rstrip()
    if origin in (list, tuple):
        items = ["..." if item is ... else _type_words(item) for item in arguments]
        return f"[{', '.join(items if origin is tuple else [*items, '...'])}]"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path"}
    return words.get(part, "a mapping")
