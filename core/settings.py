"""Settings, declared once as typed classes: read from YAML and `field=value`, checked in one place."""

import functools
import hashlib
import inspect
import itertools
import json
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.imports import is_import_path


class Mark(str):
    """A property of a field that is no rule, for example whether it may change between two sessions of a run."""


INDECISIVE = Mark("may change between two sessions of a run: it moves the weights by no more than rounding")


@dataclass(frozen=True)
class OneOf:
    """Choices for a text, or for each text of a list; of a registry its keys.

    Attributes:
        choices: The choices.
        imports: Whether the import path of an object of the user's, "module:name", is one too.
    """

    choices: Collection[str]
    imports: bool = False


@dataclass(frozen=True)
class Spelling:
    """Form of a field on a command line where that is not YAML.

    Attributes:
        read: Converts the text, or raises a `ValueError`.
        form: The form in words, alternatives separated by "|".
    """

    read: Callable[[str], Any]
    form: str


def read_names(text: str) -> list[str] | None:
    """Return the names in a text of the form `A,B|all|none`; None stands for all."""
    if text == "all":
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",")]


# Declarations ---------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One line of a list of settings.

    Attributes:
        path: Path of a field, such as `optimizer.learning_rate` or `teachers.NAME.kind`.
        field: Its declaration.
        text: Its description in the docstring.
    """

    path: str
    field: FieldInfo
    text: str


def list_settings(
    model: type[BaseModel], values: Mapping[str, Any] | None = None, prefix: str = ""
) -> Iterator[Setting]:
    """Yield all settings of a class and its sections, in the order of `ordered_fields`.

    Args:
        model: The class.
        values: Plain data whose values take the place of the defaults, and whose lists name their entries.
        prefix: Begins each path.
    """
    texts, values = field_texts(model), values if isinstance(values, Mapping) else {}  # they may be unchecked
    for name, field in ordered_fields(model, texts):
        section, entry, value = section_of(field.annotation), entry_of(field.annotation), values.get(name)
        if section is not None:
            yield from list_settings(section, value, f"{prefix}{name}.")
        elif entry is not None:
            label = "NAME" if "name" in entry.model_fields else "NUMBER"
            entries = value if isinstance(value, list) and all(isinstance(each, Mapping) for each in value) else []
            for number, each in enumerate(entries or [{"name": label}]):
                own = each if entries else None
                yield from list_settings(entry, own, f"{prefix}{name}.{each.get('name', number)}.")
        else:
            if name in values:
                field = copy(field)
                field.default, field.default_factory = value, None
            yield Setting(prefix + name, field, texts.get(name, ""))


EXPERIMENTAL = "Experimental"
"""First word of the description of a setting of the page Experimental."""


def ordered_fields(model: type[BaseModel], texts: Mapping[str, str]) -> list[tuple[str, FieldInfo]]:
    """Return the fields of a class in the order of their declaration, those that are experimental last.

    Args:
        model: The class.
        texts: Descriptions of its fields.
    """
    fields = model.model_fields.items()
    return sorted(fields, key=lambda named: texts.get(named[0], "").startswith(EXPERIMENTAL))


_PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions of fields in the docstrings of a class and its parents, with values as in YAML."""
    texts: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        text = inspect.cleandoc(parent.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
        texts.update((name, " ".join(lines.split())) for name, lines in entries if name in model.model_fields)
    words = re.compile(rf"\b({'|'.join(_PYTHON_WORDS)})\b")
    return {name: words.sub(lambda word: _PYTHON_WORDS[word[0]], text) for name, text in texts.items()}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a field that is a section of its own."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def entry_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of the entries of a field that is a list of sections."""
    return section_of(get_args(annotation)[0]) if get_origin(annotation) is list else None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def kinds_of(annotation: Any, *, with_items: bool = False) -> set[type]:
    """Return the classes of a field's values; of lists and tuples also those of their items, if they are asked for."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(arguments[0], with_items=with_items)
    if origin is Literal:
        return set(map(type, arguments))
    is_list = origin in (list, tuple)
    inner = arguments if origin in (Union, types.UnionType) or (is_list and with_items) else ()
    kinds = [kinds_of(part, with_items=with_items) for part in inner if part is not ...]
    return set().union(*kinds, {origin} if is_list else () if inner else {origin or annotation})


def literals_of(annotation: Any) -> list[Any]:
    """Return the values that a type names one by one."""
    return [choice for part in _alternatives(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def spelling_of(field: FieldInfo) -> Spelling | None:
    """Return the form of a field on a command line where that is not YAML."""
    return next((rule for rule in field.metadata if isinstance(rule, Spelling)), None)


def choices_of(field: FieldInfo) -> list[Any] | None:
    """Return all values of a field without null; None where they cannot be listed."""
    for rule in field.metadata:
        if isinstance(rule, OneOf):
            return list(rule.choices)
    is_listed = all(part is NoneType or get_origin(part) is Literal for part in _alternatives(field.annotation))
    return literals_of(field.annotation) if is_listed else None


def describe_type(field: FieldInfo) -> str:
    """Return the values of a field in words, for example "a number above 0, or null"."""
    choices, spelling, kinds = choices_of(field), spelling_of(field), kinds_of(field.annotation)
    if spelling is not None:
        text = spelling.form.replace("|", " or ")
    elif choices is not None:
        text = f"some of {choices}" if kinds & {list, tuple} else f"one of {choices}"
        text += " or module:name" * any(isinstance(rule, OneOf) and rule.imports for rule in field.metadata)
    else:
        parts = [part for part in _alternatives(field.annotation) if part is not NoneType]
        text = f"{' or '.join(map(_type_words, parts))} {_range_words(field.metadata)}".rstrip()
    return f"{text}, or null" if NoneType in kinds else text


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path"}


def _type_words(part: Any) -> str:
    origin, arguments = get_origin(part), get_args(part)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is Annotated:
        return f"{_type_words(arguments[0])} {_range_words(arguments[1:])}".rstrip()
    if origin in (list, tuple):
        items = ["..." if item is ... else _type_words(item) for item in arguments]
        return f"[{', '.join(items if origin is tuple else [*items, '...'])}]"
    return _WORDS.get(part, "a mapping")


_BOUNDS = {  # alone, and as a side of an interval
    Ge: ("of at least {}", "[{}, "),
    Gt: ("above {}", "({}, "),
    Le: ("of at most {}", "{}]"),
    Lt: ("below {}", "{})"),
}


def _range_words(rules: Sequence[Any]) -> str:
    """Return the range of a number, for example "above 0" or "in [0, 1)"; empty where there is none."""
    bounds = [(kind, rule) for kind in _BOUNDS for rule in rules if isinstance(rule, kind)]
    is_interval = len(bounds) == 2
    words = [_BOUNDS[kind][is_interval].format(getattr(rule, kind.__name__.lower())) for kind, rule in bounds]
    return f"{'in ' if is_interval else ''}{''.join(words)}"


# Texts ----------------------------------------------------------------------------------------------------------------

_NULLS = ("null", "Null", "NULL", "~")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")


def read_text(text: str, field: FieldInfo | None) -> Any:
    """Return the value of a text on the command line: YAML, with three exceptions.

    A field of texts or paths takes the text as it is, so that a folder may be called 001 or `exp #2`; only null and
    quotes around the whole text are read as YAML. A list may be written `a,b,c`. A field with a `Spelling` has its own.

    Args:
        text: The text.
        field: The declaration of the field; None for a key of a free mapping.

    Raises:
        ValueError: If it is not YAML.
    """
    spelling, kinds = (spelling_of(field), kinds_of(field.annotation)) if field is not None else (None, set())
    if spelling is not None:
        try:
            return spelling.read(text)
        except ValueError:
            return read_yaml(text)  # a list as in a file; for any other value the error names the form
    if kinds and kinds <= {str, Path, NoneType}:
        if text in _NULLS or (not text and Path not in kinds):  # an empty path is rather a shell's unset variable
            return None
        return read_yaml(text) if _QUOTED.fullmatch(text) else text
    value = read_yaml(text)
    if text == "None" and NoneType in kinds:
        return text  # not a list of that name: the check of the field says what to write
    if kinds & {list, tuple} and isinstance(value, str | int | float) and (str not in kinds or "," in text):
        return [item.strip() for item in text.split(",")]
    return value


MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_CHARACTERS = 1_000_000
"""Our choices, far beyond any real file: aliases of aliases cannot fill the memory."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, a date is text, and a key may not stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, count in Counter(key.value for key, _ in node.value if isinstance(key.value, str)).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return the plain data of a YAML text, with texts as keys.

    Raises:
        ValueError: If it is not YAML, or holds anything but plain values; the message is one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"not YAML of at most {MAX_CHARACTERS:,} characters")
    try:
        return _plain(_parsed(text), MAX_DEPTH, itertools.count())
    except RecursionError as error:
        raise ValueError(f"not YAML: it is nested deeper than {MAX_DEPTH} levels") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # of a tag written by hand
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


@functools.lru_cache(maxsize=64)  # the arms of a study, and recipes, have the same files as their bases
def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader


def _plain(value: Any, depth_left: int, count: Iterator[int]) -> Any:
    """Return a copy that shares no values, however often aliases name one."""
    if depth_left < 0:
        raise RecursionError
    if next(count) > MAX_VALUES:
        raise ValueError(f"it stands for more than {MAX_VALUES:,} values")
    if isinstance(value, dict):
        return {str(key): _plain(entry, depth_left - 1, count) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry, depth_left - 1, count) for entry in value]
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__} is no plain value")
    return value


# Checks ---------------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound="Settings")
MISSING = "`{path}` has no value: add {path}=... to the command."


class Problem(NamedTuple):
    """One fault.

    Attributes:
        path: From the settings to the field.
        text: A sentence in which `{path}` stands for the path.
    """

    path: tuple[str, ...]
    text: str


class SettingsError(ValueError):
    """Settings that cannot be used; the message is one line that names each fault and what to do about it.

    Args:
        problems: The faults; a text for one that is not about one field.
    """

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = [Problem((), problem) if isinstance(problem, str) else problem for problem in problems]

    def below(self, *names: str) -> list[Problem]:
        """Return the problems as those of settings of which these are a part."""
        return [Problem((*names, *problem.path), problem.text) for problem in self.problems]

    def __str__(self) -> str:
        paths = [".".join(problem.path) for problem in self.problems]
        shown = [path if path.isprintable() else repr(path)[1:-1] for path in paths]  # a key may hold a line break
        return " ".join(each.text.replace("{path}", path) for each, path in zip(self.problems, shown, strict=True))


class Settings(BaseModel):
    """Base of all settings: keywords only, unknown ones refused, values of the declared types and in their ranges.

    Raises:
        SettingsError: If a value is refused; all faults are named.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    error_class: ClassVar[type[SettingsError]] = SettingsError
    """Error of these settings."""

    title: ClassVar[str] = ""
    """Title of the group of the class's own fields in `--help`."""

    if not TYPE_CHECKING:  # checkers know the fields from their declaration

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                # A union has one error for each of its types: the same words stand once.
                problems = [
                    each for entry in error.errors(include_url=False) for each in _explain(type(self), entry, values)
                ]
                raise self.error_class(*dict.fromkeys(problems)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _check_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Check what types do not: choices of a registry, true and false as numbers, an empty path."""
        field = cls.model_fields[str(info.field_name)]
        kinds = kinds_of(field.annotation)
        items = value if isinstance(value, list | tuple) else []
        all_kinds = kinds_of(field.annotation, with_items=True)
        is_flag = any(isinstance(each, bool) for each in (value, *items)) and bool not in all_kinds
        is_flag = is_flag and not all_kinds.isdisjoint({int, float})
        is_none = value == "None" and NoneType in kinds
        if is_flag or is_none or (value == "" and Path in kinds):  # to Python an empty path is the working directory
            hint = " Write null for no value." if is_none else ""
            raise SettingsError(f"`{{path}}` must be {describe_type(field)}, got {value!r}.{hint}")
        if dict in kinds and not _is_finite(value):  # JSON, as checkpoints have it, knows no other number
            raise SettingsError(f"`{{path}}` must have finite numbers, got {value!r:.200}.")
        for rule in field.metadata:
            for choice in items or [value]:
                if isinstance(rule, OneOf) and isinstance(choice, str):  # other types are refused by pydantic
                    if rule.imports and is_import_path(choice):
                        continue
                    check_choice("{path}", choice, rule.choices, error=SettingsError)
        return value

    @classmethod
    def unchanged(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the plain data that a command with these options changes, for `--help`; empty for class defaults."""
        return {}

    def replace(self: S, **changes: Any) -> S:
        """Return a copy with other values, checked like new settings."""
        return type(self)(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for YAML or JSON."""
        return self.model_dump(mode="json")


def _existing_device(name: str | None) -> str | None:
    """Return the name of a device that `find_device` accepts."""
    if name is not None:
        from modeling_radio.core.machine import find_device  # imports torch, for which `--help` need not wait

        find_device(name, error=SettingsError)
    return name


class TileOptions(Settings):
    """Base of the options of a command that sees large images in tiles.

    Attributes:
        tile_size: Side in pixels of overlapping tiles, in which the model sees an image in its own size; by default
            it sees the image whole, reduced to its usual size.
        tile_overlap: Share of a tile that overlaps the next one.
    """

    tile_size: int | None = Field(None, gt=0)
    tile_overlap: float = Field(0.25, ge=0, lt=1)


class DeviceOptions(Settings):
    """Base of the options of a command that computes.

    Attributes:
        device: Device that computes, such as cpu or cuda:1; by default the first GPU, if there is one.
    """

    device: Annotated[str | None, AfterValidator(_existing_device)] = None


class DtypeOptions(Settings):
    """Base of the options of a command whose model computes in a type of choice.

    Attributes:
        dtype: Type in which the model computes.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def _is_finite(value: Any) -> bool:
    """Return whether no number within plain data is infinite or none."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def require(is_valid: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a value in a validator of the settings that `name` is a field of."""
    if not is_valid:
        raise SettingsError(Problem((name,), f"`{{path}}` must be {rule}, got {value!r}."))


def _explain(model: type[BaseModel], entry: ErrorDetails, values: Mapping[str, Any]) -> list[Problem]:
    """Return one of pydantic's errors in our words."""
    location, cause = entry["loc"], entry.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause.below(*_path(location, values))
    if entry["type"] == "default_factory_not_called":
        return []
    if not location:
        return [Problem((), str(cause or entry["msg"]))]
    name = str(location[0])
    if entry["type"] == "extra_forbidden":
        valid = list(model.model_fields)
        text = f"Unknown key '{{path}}' ({model.__name__}).{did_you_mean(name, valid)} Valid: {valid}."
    elif entry["type"] == "missing":
        text = MISSING
    elif cause is not None:  # of a function that checks this field, and says more than the type
        text = f"`{{path}}`: {cause}"
    else:
        field, value = model.model_fields[name], values.get(name)
        hint = did_you_mean(value, literals_of(field.annotation)) if isinstance(value, str) else ""
        rule = describe_type(field)
        if isinstance(value, float) and not math.isfinite(value):
            rule = rule.replace("a number", "a finite number", 1)
        text = f"`{{path}}` must be {rule}, got {value!r}.{hint}"
    return [Problem((name,), text)]


def _path(location: tuple[int | str, ...], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the path of an error: the field, and the name of an entry of a list; empty for a whole section."""
    if len(location) < 2:
        return tuple(map(str, location))
    name, number = str(location[0]), int(location[1])
    entry = values[name][number]
    label = dict(entry).get("name") if isinstance(entry, Mapping | BaseModel) else None
    return (name, str(label or number))


# Layers and changes ---------------------------------------------------------------------------------------------------


def load(model: type[S], layers: Sequence[Mapping[str, Any]], changes: Sequence[str] = ()) -> S:
    """Return settings of layers of plain data and the changes of a command line.

    Args:
        model: Their class.
        layers: Mappings of fields, put together by `merged`; later ones win.
        changes: `"section.field=value"` texts, values in YAML; entries of a list are found by their `name` or number.

    Raises:
        SettingsError: The model's own `error_class`, if a key is unknown, or a value is missing or refused.
    """
    given: dict[str, Any] = functools.reduce(merged, layers, {})
    values = merged(_defaults(model, given), given)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise model.error_class(f"{change!r} must have the form field=value, within a section section.field=value.")
        names = key.split(".")
        try:
            values = _assigned(values, (), names, read_text(text, _field_at(model, names)))
        except ValueError as error:
            raise model.error_class(f"{change!r}: {error}") from error
    return model(**values)


def merged(base: Any, layer: Any) -> Any:
    """Return plain data with other data laid over it.

    Mappings are merged field by field. A list replaces a list, but an entry with a name is merged with the old entry of
    this name: fields that it does not give keep their values.
    """
    entries = _by_name(base)
    if isinstance(base, list) and isinstance(layer, list) and isinstance(entries, Mapping):
        return [
            merged(entries.get(str(entry.get("name"))), entry) if isinstance(entry, Mapping) else entry
            for entry in layer
        ]
    return _laid_over(base, layer, merged)


def _replaced(base: Any, value: Any) -> Any:
    """Return plain data after an assignment: mappings are merged, lists replaced."""
    return _laid_over(base, value, _replaced)


def _laid_over(base: Any, layer: Any, combine: Callable[[Any, Any], Any]) -> Any:
    if not isinstance(base, Mapping) or not isinstance(layer, Mapping):
        return layer
    return {**base, **{key: combine(base.get(key), value) for key, value in layer.items()}}


def _defaults(model: type[BaseModel], given: Any) -> dict[str, Any]:
    """Return all sections with the entries of their lists, so that a change finds them and a missing field is named.

    A list in `given` gets no default entries and inherits nothing from them.
    """
    values: dict[str, Any] = {}
    given = given if isinstance(given, Mapping) else {}
    for name, field in model.model_fields.items():
        if (section := section_of(field.annotation)) is not None:
            values[name] = _defaults(section, given.get(name))
        elif entry_of(field.annotation) is not None and not field.is_required() and name not in given:
            values[name] = [entry.model_dump() for entry in field.get_default(call_default_factory=True)]
    return values


def _field_at(model: type[BaseModel] | None, names: Sequence[str]) -> FieldInfo | None:
    """Return the declaration of the field at a path, or None within a mapping of free keys."""
    first, *rest = names
    field = None if model is None else model.model_fields.get(first)
    if field is None or not rest:
        return field
    entry = entry_of(field.annotation)
    below = rest if entry is None else rest[1:]  # after the name of the entry
    return _field_at(entry or section_of(field.annotation), below) if below else None


def _assigned(data: Any, path: tuple[str, ...], names: Sequence[str], value: Any) -> Any:
    """Return the plain data `data` at `path`, with another value at `names` below it."""
    if not names:
        return _replaced(data, value)
    first, *rest = names
    below = (*path, first)
    if isinstance(data, list):
        index = _index_of(data, path, first)
        return [*data[:index], _assigned(data[index], below, rest, value), *data[index + 1 :]]
    mapping = data if isinstance(data, Mapping) else {}
    return {**mapping, first: _assigned(mapping.get(first), below, rest, value)}


def _index_of(entries: list[Any], path: tuple[str, ...], name: str) -> int:
    """Return the index of an entry in a list, given its name or number."""
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in entries]
    if name in names:
        return names.index(name)
    if not name.isdecimal() or int(name) >= len(entries):
        hint = did_you_mean(name, [entry for entry in names if entry is not None])
        raise ValueError(f"Unknown entry {name!r} of {'.'.join(path)!r}.{hint} Entries: {names}.")
    return int(name)


# Recorded settings ----------------------------------------------------------------------------------------------------


def marked(model: type[BaseModel], mark: Mark, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields that have a mark; entries of lists have no part in a path."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation) or entry_of(field.annotation)
        if mark in field.metadata:
            yield (*prefix, name)
        elif inner is not None:
            yield from marked(inner, mark, (*prefix, name))


def without(values: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """Return plain data without the values at some paths, in every entry of a list."""
    if isinstance(values, list):
        return [without(entry, paths) for entry in values]
    rest = {key: value for key, value in values.items() if (key,) not in paths}
    for key in {path[0] for path in paths if len(path) > 1} & rest.keys():
        rest[key] = without(rest[key], [path[1:] for path in paths if path[0] == key])
    return rest


def with_defaults(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of settings with the defaults of fields that it lacks: those that are newer than the data.

    Fields without a default stay absent, and nothing is checked.
    """
    result = _by_section(model, values, with_defaults)
    for name, field in model.model_fields.items():
        if name not in values and not field.is_required():
            result[name] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data=result))
    return result


def without_unknown(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of settings without the fields that their class does not have: those older than the class."""
    known = {name: value for name, value in values.items() if name in model.model_fields}
    return _by_section(model, known, without_unknown)


def _by_section(model: type[BaseModel], values: Mapping[str, Any], change: Callable) -> dict[str, Any]:
    """Return plain data of settings, each section and each entry of a list changed by a function of class and data."""
    result = dict(values)
    for name in values.keys() & model.model_fields.keys():
        annotation, value = model.model_fields[name].annotation, values[name]
        section, entry = section_of(annotation), entry_of(annotation)
        if section is not None and isinstance(value, Mapping):
            result[name] = change(section, value)
        elif entry is not None and isinstance(value, list):
            result[name] = [change(entry, each) if isinstance(each, Mapping) else each for each in value]
    return result


def setting_paths(values: Mapping[str, Any]) -> list[str]:
    """Return `"section.field"` for every value of nested mappings; entries of lists stand under their names."""
    return list(_flatten(values))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `"section.field: old -> new"` for every value that two nested mappings do not share."""
    before, after = _flatten(old), _flatten(new)
    pairs = {key: (before.get(key, "(absent)"), after.get(key, "(absent)")) for key in [*before, *after]}
    return [f"{key}: {first} -> {second}" for key, (first, second) in pairs.items() if first != second]


def order_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `"order of section: old -> new"` for every list of named entries whose shared entries are reordered."""
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
    is_named = isinstance(values, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in values
    )
    return {entry["name"]: entry for entry in values} if values and is_named else values


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    values = _by_name(values)
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def hash_of(values: Mapping[str, Any]) -> str:
    """Return a SHA-256 of plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
