"""Settings, declared once as typed classes: read from YAML and `field=value`, checked in one place.

Every field of a `Settings` class has a type, its rule, and a line in the docstring's "Attributes:". Files, changes and
flags on the command line, `--help` and errors are all made from these.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

from foundation.errors import check_choice, did_you_mean
from foundation.fields import (
    Mark,
    OneOf,
    describe_type,
    entry_of,
    item_kinds_of,
    kinds_of,
    literals_of,
    read_text,
    section_of,
)


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
