"""Settings, declared once as typed classes: read from YAML and `field=value`, checked in one place."""

import hashlib
import inspect
import itertools
import json
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

from core.errors import check_choice, did_you_mean


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


S = TypeVar("S", bound="Settings")


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: From the settings to the field, without what these settings are a section of.
        text: A sentence in which `{path}` stands for the path.
    """

    path: tuple[str, ...]
    text: str


MISSING = "`{path}` has no value: add {path}=... to the command."


class SettingsError(ValueError):
    """Settings that cannot be used; the message is one line that names each fault and what to do about it.

    Args:
        problems: What is wrong; a text where it is not about one field.
    """

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = [Problem((), problem) if isinstance(problem, str) else problem for problem in problems]

    def below(self, *names: str) -> list[Problem]:
        """Return the problems as those of settings of which these are a part."""
        return [Problem((*names, *problem.path), problem.text) for problem in self.problems]

    def __str__(self) -> str:
        return " ".join(problem.text.replace("{path}", _shown(problem.path)) for problem in self.problems)


def _shown(path: tuple[str, ...]) -> str:
    """Return a path as it is set; a key of a file may hold what would break the line."""
    text = ".".join(path)
    return text if text.isprintable() else repr(text)[1:-1]


class Settings(BaseModel):
    """Base of all settings: keywords only, unknown ones refused, values of the declared types and in their ranges.

    Raises:
        SettingsError: If a value cannot be; all faults are named.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    error_class: ClassVar[type[SettingsError]] = SettingsError
    """What is raised, for settings that have an error of their own."""

    title: ClassVar[str] = ""
    """Of the group that the fields form in `--help`."""

    if not TYPE_CHECKING:  # checkers know the fields from their declaration

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise self.error_class(*_problems(type(self), error, values)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _check_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Check what types do not: choices of a registry, that true and false are no numbers, and "" is no path."""
        field = cls.model_fields[str(info.field_name)]
        kinds = kinds_of(field.annotation)
        items = value if isinstance(value, list | tuple) else []
        is_flag = _is_flag_for_a_number([value], kinds) or _is_flag_for_a_number(items, item_kinds_of(field.annotation))
        if is_flag or (value == "" and Path in kinds):  # a path that is empty is the working directory to Python
            raise SettingsError(f"`{{path}}` must be {describe_type(field)}, got {value!r}.")
        if value == "None" and NoneType in kinds:
            raise SettingsError(f"`{{path}}` must be {describe_type(field)}, got {value!r}. Write null for no value.")
        for rule in field.metadata:
            if isinstance(rule, OneOf):
                for choice in items or [value]:
                    if isinstance(choice, str):  # what is no text is refused by its type
                        check_choice("{path}", choice, rule.choices, error=SettingsError)
        return value

    def replace(self: S, **changes: Any) -> S:
        """Return a copy with other values, checked like new settings."""
        return type(self)(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for YAML or JSON."""
        return self.model_dump(mode="json")


def _is_flag_for_a_number(values: Sequence[Any], kinds: set[type]) -> bool:
    return bool(kinds & {int, float}) and bool not in kinds and any(isinstance(value, bool) for value in values)


def require(is_valid: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a value in a validator of the settings that `name` is a field of."""
    if not is_valid:
        raise SettingsError(Problem((name,), f"`{{path}}` must be {rule}, got {value!r}."))


def load(model: type[S], layers: Sequence[Mapping[str, Any]], changes: Sequence[str] = ()) -> S:
    """Return settings out of layers of plain data and what a command line changes.

    Args:
        model: Their class.
        layers: Mappings of fields; later ones win. Mappings are merged, lists replaced.
        changes: `"section.field=value"` texts, values in YAML; entries of a list are found by their `name` or number.

    Raises:
        SettingsError: Of the model's kind, if a key is unknown, or a value is missing or cannot be.
    """
    values = _defaults(model)
    for layer in layers:
        values = merged(values, layer)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise model.error_class(f"{change!r} must have the form field=value, within a section section.field=value.")
        names = key.split(".")
        try:
            value = read_text(text, _field_at(model, names))
            values = _assigned(values, (), names, value)
        except ValueError as error:
            raise model.error_class(f"{change!r}: {error}") from error
    return model(**values)


def merged(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the entries of another laid over it, mapping by mapping; lists are replaced."""
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value
    return result


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return all sections with the entries of their lists, so that a change finds them and a missing field is named."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if (section := section_of(field.annotation)) is not None:
            values[name] = _defaults(section)
        elif entry_of(field.annotation) is not None and not field.is_required():
            values[name] = [entry.model_dump() for entry in field.get_default(call_default_factory=True)]
    return values


def _field_at(model: type[BaseModel], names: Sequence[str]) -> FieldInfo | None:
    """Return the declaration of the field at a path, or None within a mapping of free keys."""
    first, *rest = names
    field = model.model_fields.get(first)
    if field is None or not rest:
        return field
    section, entry = section_of(field.annotation), entry_of(field.annotation)
    if section is not None:
        return _field_at(section, rest)
    return _field_at(entry, rest[1:]) if entry is not None and len(rest) > 1 else None


def _assigned(place: Any, path: tuple[str, ...], names: Sequence[str], value: Any) -> Any:
    """Return plain data with another value at `names` below `path`, where `place` was."""
    if not names:
        both = isinstance(place, Mapping) and isinstance(value, Mapping)
        return merged(place, value) if both else value
    first, *rest = names
    below = (*path, first)
    if isinstance(place, list):
        index = _index_of(place, path, first)
        return [*place[:index], _assigned(place[index], below, rest, value), *place[index + 1 :]]
    mapping = place if isinstance(place, Mapping) else {}
    return {**mapping, first: _assigned(mapping.get(first), below, rest, value)}


def _index_of(entries: list[Any], path: tuple[str, ...], name: str) -> int:
    """Return the place of an entry in a list, given its name or number."""
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in entries]
    if name in names:
        return names.index(name)
    if not name.isdecimal() or int(name) >= len(entries):
        hint = did_you_mean(name, [entry for entry in names if entry is not None])
        raise ValueError(f"Unknown entry {name!r} of {'.'.join(path)!r}.{hint} Entries: {names}.")
    return int(name)


def _problems(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> list[Problem]:
    """Return pydantic's complaints in our words, each once: a union has one for each of its types."""
    entries = [entry for entry in error.errors(include_url=False) if entry["type"] != "default_factory_not_called"]
    return list(dict.fromkeys(problem for entry in entries for problem in _explain(model, entry, values)))


def _explain(model: type[BaseModel], entry: ErrorDetails, values: Mapping[str, Any]) -> list[Problem]:
    location, cause = entry["loc"], entry.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause.below(*_path(location, values))
    if not location:
        return [Problem((), str(cause or entry["msg"]))]
    name = str(location[0])
    if entry["type"] == "extra_forbidden":
        valid = list(model.model_fields)
        return [
            Problem((name,), f"Unknown key '{{path}}' ({model.__name__}).{did_you_mean(name, valid)} Valid: {valid}.")
        ]
    if entry["type"] == "missing":
        return [Problem((name,), MISSING)]
    field, value = model.model_fields[name], values.get(name)
    hint = did_you_mean(value, literals_of(field.annotation)) if isinstance(value, str) else ""
    rule = describe_type(field)
    if isinstance(value, float) and not math.isfinite(value):
        rule = rule.replace("a number", "a finite number", 1)
    return [Problem((name,), f"`{{path}}` must be {rule}, got {value!r}.{hint}")]


def _path(location: tuple[int | str, ...], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return where an error is: the field, and of an entry in a list its name; nothing for that of a whole section."""
    if len(location) < 2:
        return tuple(map(str, location))
    name, *rest = map(str, location)
    entry = values[name][int(rest[0])]
    label = dict(entry).get("name") if isinstance(entry, Mapping | BaseModel) else None
    return (name, str(label or rest[0]))


def marked(model: type[BaseModel], mark: Mark, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields that have a mark; entries of lists have no part in a path."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation) or entry_of(field.annotation)
        if mark in field.metadata:
            yield (*prefix, name)
        elif inner is not None:
            yield from marked(inner, mark, (*prefix, name))


def without(values: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """Return plain data without what lies at some paths, in every entry of a list."""
    if isinstance(values, list):
        return [without(entry, paths) for entry in values]
    rest = {key: value for key, value in values.items() if (key,) not in paths}
    for key in {path[0] for path in paths if len(path) > 1} & rest.keys():
        rest[key] = without(rest[key], [path[1:] for path in paths if path[0] == key])
    return rest


def with_defaults(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of settings with the defaults of fields that it lacks: those that are newer than the data.

    What has no default stays absent, and nothing is checked.
    """
    result = dict(values)
    for name, field in model.model_fields.items():
        section, entry, value = section_of(field.annotation), entry_of(field.annotation), values.get(name)
        if name not in values:
            if not field.is_required():
                default = field.get_default(call_default_factory=True, validated_data=result)
                result[name] = to_jsonable_python(default)
        elif section is not None and isinstance(value, Mapping):
            result[name] = with_defaults(section, value)
        elif entry is not None and isinstance(value, list):
            result[name] = [with_defaults(entry, each) if isinstance(each, Mapping) else each for each in value]
    return result


def without_unknown(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of settings without the fields that their class does not have: those older than the class."""
    known = {name: value for name, value in values.items() if name in model.model_fields}
    for name, value in known.items():
        field = model.model_fields[name]
        section, entry = section_of(field.annotation), entry_of(field.annotation)
        if section is not None and isinstance(value, Mapping):
            known[name] = without_unknown(section, value)
        elif entry is not None and isinstance(value, list):
            known[name] = [without_unknown(entry, each) if isinstance(each, Mapping) else each for each in value]
    return known


def setting_paths(values: Mapping[str, Any]) -> list[str]:
    """Return `"section.field"` for every value of nested mappings; entries of lists stand under their names."""
    return list(_flatten(values))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `"section.field: old -> new"` for every value that two nested mappings do not share."""
    old_values, new_values = _flatten(old), _flatten(new)
    keys = [*old_values, *(key for key in new_values if key not in old_values)]
    absent = "(absent)"
    pairs = ((key, old_values.get(key, absent), new_values.get(key, absent)) for key in keys)
    return [f"{key}: {before} -> {after}" for key, before, after in pairs if before != after]


def order_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `"order of section: old -> new"` for every list of named entries whose shared entries changed places."""
    changed = []
    old_orders, new_orders = _orders(old), _orders(new)
    for path in old_orders.keys() & new_orders.keys():
        before = [name for name in old_orders[path] if name in new_orders[path]]
        after = [name for name in new_orders[path] if name in old_orders[path]]
        if before != after:
            changed.append(f"order of {path}: {', '.join(before)} -> {', '.join(after)}")
    return sorted(changed)


def _orders(values: Any, prefix: str = "") -> dict[str, list[str]]:
    named = _by_name(values)
    orders = {} if named is values else {prefix: list(named)}
    if isinstance(named, Mapping):
        for key, value in named.items():
            orders |= _orders(value, f"{prefix}.{key}" if prefix else str(key))
    return orders


def _by_name(values: Any) -> Any:
    """Return a list of entries with names as a mapping, anything else as it is."""
    if isinstance(values, list) and values and all(isinstance(entry, dict) and "name" in entry for entry in values):
        return {entry["name"]: entry for entry in values}
    return values


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    values = _by_name(values)
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def hash_of(values: Mapping[str, Any]) -> str:
    """Return a SHA-256 of plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
