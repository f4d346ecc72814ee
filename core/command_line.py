"""Command lines: from words to settings, and how every command ends."""

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Generic, NoReturn, TypeVar

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from modeling_radio.checks_radio import did_you_mean
from modeling_radio.core.errors import FULL_DISK, KILLED_WORKER, UserError, without_secrets
from modeling_radio.core.interruption import Interrupted, OutOfTime, Signaled, TrainingDivergedError, ends_in_time
from modeling_radio.core.settings import (
    MISSING,
    Settings,
    SettingsError,
    choices_of,
    describe_type,
    field_texts,
    kinds_of,
    list_settings,
    literals_of,
    load,
    ordered_fields,
    read_text,
    section_of,
    spelling_of,
)
from modeling_radio_cli import open_package


MAX_MESSAGE = 5000
"""Characters of an error that are shown. Our choice: the names in a sound file are fewer."""
USER_ERRORS = (ValueError, OSError, UserError, TrainingDivergedError)

WORKER_IS_GONE = (
    "a data worker was killed by the system, most often for want of memory: the same command goes on, and needs less "
    "with fewer workers (`num_workers`)."
)

# The error of a data worker as torch raises it in the main process (`torch._utils.ExceptionWrapper`).
FROM_WORKER = re.compile(
    r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback.*^(?:[\w.]+\.)?\1: (?P<message>.*)",
    re.DOTALL | re.MULTILINE,
)


def run_command(
    name: str, run: Callable[[], None], *, show_traceback: bool, interrupted: str = "interrupted", extra: str = "tasks"
) -> int:
    """Run a command and return its exit status.

    Args:
        name: Name of the command; begins the line of an error.
        run: Does the work and prints its results.
        show_traceback: Let errors pass, so that Python shows where they came from.
        interrupted: Message after Ctrl-C where the interruption has none.
        extra: Optional dependency of `pyproject.toml` with every package that the command may need.
    """
    try:
        with ends_in_time():
            run()
    except OutOfTime as end:
        print(end)  # as the user wanted it
        return 0
    except (Interrupted, KeyboardInterrupt) as interruption:
        number = interruption.number if isinstance(interruption, Interrupted | Signaled) else signal.SIGINT
        message, status = str(interruption) or interrupted, 128 + number  # as shells count
    except (*USER_ERRORS, ImportError, RuntimeError) as error:
        advice = None if show_traceback else _advice(error, extra)
        if advice is None:
            raise
        message, status = f"error: {' '.join(advice.split())}", 1
    else:
        return 0
    print(f"{name}: {without_secrets(message)}", file=sys.stderr, flush=True)
    return status


def _advice(error: Exception, extra: str) -> str | None:
    """Return the message of an error that the user can mend; None for a bug."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        is_absent = package and importlib.util.find_spec(package) is None  # else a part is missing, which is a bug
        advice = f'the package {package} is not installed: run `pip install "modeling-radio[{extra}]"`'
        return advice if is_absent else None
    if isinstance(error, ImportError):  # a library asks for a package in words of its own; else it is a bug
        return str(error) if error.name is None else None
    if not isinstance(error, USER_ERRORS):
        return WORKER_IS_GONE if KILLED_WORKER.match(str(error)) else None
    if isinstance(error, OSError) and error.errno in FULL_DISK:  # libraries write it, into places that few know
        where = f"a file in {tempfile.gettempdir()!r} (TMPDIR) or a cache (HF_HOME, RADIO_CACHE)"
        return f"cannot write {repr(error.filename) if error.filename else where}: {error.strerror}. Make space there."
    from_worker = FROM_WORKER.match(str(error))
    message = from_worker["message"] if from_worker else str(error)
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}... ({len(message):,} characters)"


@contextmanager
def one_line_warnings(name: str) -> Iterator[None]:
    """Print warnings as one line each, which begins with the name of the command, without a position in the source."""

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        print(f"{name}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


S = TypeVar("S", bound=Settings)

CHANGES = "changes"
"""Field of a command's settings for the changes of something else, such as a recipe."""
_CHANGE = re.compile(r"\w[\w-]*(\.[\w-]+)*=")


_TYPED: ContextVar[tuple[str, list[str]] | None] = ContextVar("typed", default=None)
"""Name and words of the command that runs."""
_SOURCE = re.compile(r"(?P<kind>(?:[\w.-]+:)*?)(?P<place>\w+://|[/~]|[A-Za-z]:[\\/]).*", re.DOTALL)
"""Matches an address or an absolute path, such as that of `teacher:KIND:SOURCE`."""


def typed_command(name: str) -> str | None:
    """Return the command of this name that runs as it was typed, for a record; None where Python called it.

    Records are published: secrets are left out, and of addresses and absolute paths only the last name is kept.
    """
    typed = _TYPED.get()
    return None if typed is None or typed[0] != name else _to_record(name, typed[1])


def recorded_command(name: str, settings: Settings, positionals: Sequence[str] = ()) -> str:
    """Return `typed_command`, or where Python called a command that has the same settings.

    Args:
        name: Its name, such as "radio finetune".
        settings: The settings.
        positionals: Fields without a flag.
    """
    typed = typed_command(name)
    if typed is not None:
        return typed
    values, fields = settings.to_dict(), type(settings).model_fields.items()
    defaults = {field: entry.default for field, entry in fields if entry.default is not PydanticUndefined}
    words = [str(values[field]) for field in positionals]
    for field, value in values.items():
        is_default = field in defaults and value == to_jsonable_python(defaults[field])
        if field in positionals or is_default:
            continue
        if field == CHANGES and isinstance(value, list):
            words += value
        elif isinstance(value, dict):
            prefix = "" if field == CHANGES else f"{field}."
            words += [f"{prefix}{key}={_to_text(entry)}" for key, entry in value.items()]
        else:
            words.append(f"{field}={_to_text(value)}")
    return _to_record(name, words)


def _to_text(value: Any) -> str:
    """Return plain data as `read_text` reads it, without places."""
    if isinstance(value, str):
        return _last_name(value)
    return json.dumps(
        [_last_name(each) if isinstance(each, str) else each for each in value] if isinstance(value, list) else value
    )


def _to_record(name: str, words: Sequence[str]) -> str:
    return without_secrets(shlex.join([*name.split(), *map(_without_place, words)]))


def _without_place(word: str) -> str:
    """Return a word of a command with the last names of addresses and absolute paths alone."""
    field = re.match(r"(?:--)?[\w.-]+=", word)
    first = "" if field is None else field[0]
    return first + ",".join(map(_last_name, word[len(first) :].split(",")))


def _last_name(source: str) -> str:
    found = _SOURCE.fullmatch(source)
    if found is None:
        return source
    path = source.partition("?")[0] if "://" in source else source
    return found["kind"] + (re.split(r"[\\/]", path.rstrip("\\/"))[-1] or found["place"])


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of a command, and whose help begins with examples."""

    examples: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (--help lists all options).")

    def format_help(self) -> str:
        examples = "\n  ".join(["examples:", *self.examples]) + "\n\n" if self.examples else ""
        return examples + super().format_help()


class _Lengthen(argparse.Action):
    """Joins the values of a flag that is given several times: `--compare A --compare B` is `--compare A,B`."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = vars(namespace).get(self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


class Command(Generic[S]):
    """A command whose options are declared as settings.

    Every field is a flag and can be set as `field=value` too, which wins. Fields named as positionals stand in order; a
    mapping has no flag, but `field.key=value`.

    Args:
        name: Its name, such as "radio finetune"; begins its messages.
        description: Text of `--help`.
        settings: Class of the options.
        positionals: Fields without a flag; the last may be a list, or have a default.
        changes: Class of what `section.field=value` changes where the settings have a field `changes`: a recipe.
        add_shorthands: Adds flags that stand for several.
        examples: Three command lines, which `--help` begins with.

    Attributes:
        parser: Parser of flags and positionals, for tools that read it.
    """

    def __init__(
        self,
        name: str,
        description: str,
        settings: type[S],
        positionals: Sequence[str] = (),
        changes: type[Settings] | None = None,
        add_shorthands: Callable[[argparse.ArgumentParser], object] | None = None,
        examples: Sequence[str] = (),
    ) -> None:
        self.name, self.examples = name, examples
        self.settings, self.changes = settings, changes
        self.parser = _Parser(
            prog=name,
            description=textwrap.fill(" ".join(description.split()), 100),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        texts = field_texts(settings)
        for name, field in ordered_fields(settings, texts):
            if name in positionals or name == CHANGES or dict in kinds_of(field.annotation):
                continue
            owners = [each for each in settings.__mro__ if issubclass(each, Settings) and name in each.model_fields]
            title = vars(owners[-1]).get("title")  # of the class that declares the field
            groups = {group.title: group for group in self.parser._action_groups}
            group = self.parser if not title else groups.get(title) or self.parser.add_argument_group(title)
            _add_flag(group, name, field, texts[name].replace("%", "%%"))
        if add_shorthands is not None:
            add_shorthands(self.parser)
        self.parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
        for name in positionals:
            field = settings.model_fields[name]
            count = "+" if list in kinds_of(field.annotation) else None if field.is_required() else "?"
            self.parser.add_argument(name, nargs=count, metavar=name.upper(), help=texts[name].replace("%", "%%"))
        self.parser.usage = self._usage(positionals).replace("%", "%%")
        self.parser.examples = examples

    def _usage(self, positionals: Sequence[str]) -> str:
        """Return the usage with what must be given alone; the options are listed below it."""
        words = []
        for name in positionals:
            field = self.settings.model_fields[name]
            word = f"{name.upper()}{' ...' * (list in kinds_of(field.annotation))}"
            words.append(word if field.is_required() else f"[{word}]")
        for name, field in self.settings.model_fields.items():
            if field.is_required() and name not in positionals:
                words.append(f"--{name.replace('_', '-')} {name.rpartition('_')[2].upper()}")
        return " ".join([self.name, *words, "[options] [field=value ...]"])

    def completing(self) -> argparse.ArgumentParser:
        """Return the parser for `argcomplete`: flags know what may follow them."""
        for action in self.parser._actions:
            field = self.settings.model_fields.get(action.dest)
            choices = None if field is None else choices_of(field)
            if choices is not None:
                action.choices = [str(choice) for choice in choices]
        return self.parser

    def run(
        self,
        run: Callable[[S], None],
        arguments: Sequence[str] | None = None,
        *,
        interrupted: str = "interrupted",
        extra: str = "tasks",
    ) -> int:
        """Run the command and return its exit status.

        Args:
            run: Does the work and prints its results.
            arguments: Words after the command; None for those of this process.
            interrupted: Message after Ctrl-C where the interruption has none.
            extra: Optional dependency of `pyproject.toml` with every package that the command may need.
        """
        words = sys.argv[1:] if arguments is None else list(arguments)
        show_traceback = "--traceback" in words
        token = _TYPED.set((self.name, words))
        try:
            return run_command(
                self.name,
                lambda: self._run(run, words),
                show_traceback=show_traceback,
                interrupted=interrupted,
                extra=extra,
            )
        finally:
            _TYPED.reset(token)

    def _run(self, run: Callable[[S], None], words: Sequence[str]) -> None:
        settings = self.read(words)
        open_package()
        run(settings)

    def read(self, words: Sequence[str]) -> S:
        """Return the settings of a command line; print the usage if one is missing, or the help if it is asked for.

        Raises:
            SettingsError: If a flag, a field or a value is refused.
        """
        words, changes = self._without_changes(words)
        given = argparse.Namespace()
        if not {"-h", "--help"}.isdisjoint(words):
            with suppress(SettingsError):
                self.parser.parse_known_intermixed_args([word for word in words if word not in ("-h", "--help")], given)
            self.parser.epilog = self._epilog(vars(given))
        try:
            _, own = self.parser.parse_known_intermixed_args(words, given)
        except SettingsError as error:
            if "arguments are required" in str(error):
                self.parser.print_usage(sys.stderr)
            raise
        for word in own:  # neither flags nor positionals: what is left is refused as a change without "="
            if word.startswith("-"):
                flags = [flag for action in self.parser._actions for flag in action.option_strings]
                raise SettingsError(f"Unknown option {word!r}.{did_you_mean(word, flags)} --help lists all.")
        others = [word for word in changes if self._is_change_of_others(word)]
        own += [word for word in changes if word not in others]
        values = {name: self._read(name, text) for name, text in vars(given).items() if name != "traceback"}
        try:
            return load(self.settings, [values | ({CHANGES: others} if others else {})], own)
        except SettingsError as error:
            if any(problem.text == MISSING for problem in error.problems):
                self.parser.print_usage(sys.stderr)
            raise

    def _without_changes(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return flags and positionals, and the changes, which may stand anywhere but where a flag needs a value."""
        needy = {flag for action in self.parser._actions if action.nargs is None for flag in action.option_strings}
        others, changes = [], []
        for before, word in zip(["", *words], words, strict=False):
            (changes if _CHANGE.match(word) and before not in needy else others).append(word)
        return others, changes

    def _is_change_of_others(self, word: str) -> bool:
        first, sign = re.split(r"([.=])", word)[:2]
        if self.changes is None:
            return False
        if first in self.settings.model_fields:  # a plain option goes into no section: `data.source` is another's
            is_plain = section_of(self.settings.model_fields[first].annotation) is None
            return sign == "." and is_plain and first in self.changes.model_fields
        known = [*self.settings.model_fields, *self.changes.model_fields]
        if first not in known:
            raise SettingsError(f"Unknown key {first!r}.{did_you_mean(first, known)} --help lists all.")
        return True

    def _read(self, name: str, text: Any) -> Any:
        field = self.settings.model_fields[name]
        words = text if isinstance(text, list) else [text]
        if any(isinstance(word, str) and not word.strip() for word in words):  # null in YAML: it would not count
            raise SettingsError(f"`{name}` must be {describe_type(field)}, got {text!r}. Leave it out for its default.")
        try:
            return read_text(text, field) if isinstance(text, str) else text
        except ValueError as error:
            raise SettingsError(f"`{name}` is {error}") from error

    def _epilog(self, given: Mapping[str, Any]) -> str:
        """Return the settings without a flag; a recipe's with the defaults of the one that the options name."""
        lines, known = ["Every option can be written as field=value too."], set()
        texts, width = field_texts(self.settings), shutil.get_terminal_size().columns - 2
        mappings = [name for name, field in self.settings.model_fields.items() if dict in kinds_of(field.annotation)]
        free = [name for name in mappings if name != CHANGES]
        entries = [(f"  {name}.KEY=value", texts[name]) for name in free]
        if self.changes is not None:
            entries.append((f"\nsection.field=value changes the {self.changes.__name__.lower()}:", ""))
            for path, field, text in list_settings(self.changes, self.settings.unchanged(given)):
                entries.append((f"  {path}: {describe_type(field)}{_default(field)}", text))
        for title, text in entries:
            lines.append(title)
            if text not in known:  # all entries of a list have the same text
                lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
            known.add(text)
        return "\n".join(lines)


def _add_flag(group: "argparse._ActionsContainer", name: str, field: FieldInfo, text: str) -> None:
    flag, kinds = name.replace("_", "-"), kinds_of(field.annotation)
    if kinds == {bool} and field.default:
        group.add_argument(
            f"--no-{flag}", dest=name, action="store_false", help=f"{text} On by default: this option switches it off."
        )
        return
    text += _default(field).replace("%", "%%")
    if kinds == {bool}:
        group.add_argument(f"--{flag}", action="store_true", help=text)
    else:
        action = _Lengthen if list in kinds and spelling_of(field) is None else "store"
        group.add_argument(f"--{flag}", action=action, metavar=_metavar(name, field), help=text)


def _metavar(name: str, field: FieldInfo) -> str:
    choices, kinds, spelling = choices_of(field), kinds_of(field.annotation), spelling_of(field)
    if spelling is not None:
        return spelling.form
    if choices is not None:
        return f"{{{','.join(map(str, choices))}}}"
    if kinds & {list, tuple}:
        return "|".join([*map(str, literals_of(field.annotation)), "A,B"])
    return "N" if kinds & {int, float} else name.rpartition("_")[2].upper()


def _default(field: FieldInfo) -> str:
    """Return the default of a field in brackets; nothing for null, which the docstring explains."""
    if field.is_required():
        return " (required)"
    value = field.default
    if field.default_factory is not None or value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return f" (default: {str(value).lower()})"
    return f" (default: {','.join(map(str, value)) if isinstance(value, list | tuple) else value})"
