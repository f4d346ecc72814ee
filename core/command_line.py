"""Command lines: from words to settings, and how every command ends."""

import argparse
import importlib.util
import re
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, TextIO, TypeVar

from pydantic.fields import FieldInfo

from core.errors import UserError, did_you_mean
from core.interruption import Interrupted, OutOfTime, Signaled, TrainingDivergedError, ends_in_time
from core.settings import (
    MISSING,
    Settings,
    SettingsError,
    Spelling,
    choices_of,
    describe_type,
    field_texts,
    kinds_of,
    list_settings,
    literals_of,
    load,
    read_text,
    section_of,
)


MAX_MESSAGE = 5000
"""Characters of an error that are shown; our choice, above all lists of names that a sound file leads to."""
USER_ERRORS = (ValueError, OSError, UserError, TrainingDivergedError)

KILLED_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")
"""Matches the error that torch raises when a data worker was killed."""
WORKER_IS_GONE = (
    "a data worker was killed by the system, most often for want of memory: the same command goes on, and needs less "
    "with fewer workers (`num_workers`)."
)

# How torch raises in the main process what a data worker has raised (`torch._utils.ExceptionWrapper`).
FROM_WORKER = re.compile(
    r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback.*^(?:[\w.]+\.)?\1: (?P<message>.*)",
    re.DOTALL | re.MULTILINE,
)


def run_command(
    name: str, run: Callable[[], None], *, show_traceback: bool, interrupted: str = "interrupted", extra: str = "tasks"
) -> int:
    """Run a command and return its exit status.

    Args:
        name: Of the command; begins the line of an error.
        run: Does the work and prints its results.
        show_traceback: Let errors pass, so that Python shows where they came from.
        interrupted: What to say after Ctrl-C where the interruption itself says nothing.
        extra: Optional dependency of `pyproject.toml` that has every package which the command may need.
    """
    try:
        with ends_in_time():
            run()
    except OutOfTime as end:
        print(end)  # as the user wanted it
        return 0
    except (Interrupted, KeyboardInterrupt) as interruption:
        number = interruption.number if isinstance(interruption, Interrupted | Signaled) else signal.SIGINT
        return _end(name, str(interruption) or interrupted, 128 + number)  # as shells count
    except ModuleNotFoundError as error:
        if show_traceback or error.name is None or not _is_absent(error.name):
            raise
        package = error.name.partition(".")[0]
        return _end(name, f'error: the package {package} is not installed: run `pip install -e ".[{extra}]"`', 1)
    except RuntimeError as error:
        if show_traceback or not KILLED_WORKER.match(str(error)):
            raise
        return _end(name, f"error: {WORKER_IS_GONE}", 1)
    except USER_ERRORS as error:
        if show_traceback:
            raise
        return _end(name, f"error: {' '.join(_message(error).split())}", 1)
    return 0


@contextmanager
def one_line_warnings(name: str) -> Iterator[None]:
    """Print warnings as one line each, without the place in the source that raised them.

    Args:
        name: Of the command; begins the line.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"{name}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _message(error: Exception) -> str:
    """Return what an error says, of a data worker's without the traceback that torch puts before it.

    A damaged file may have names of any length, which messages quote.
    """
    from_worker = FROM_WORKER.match(str(error))
    message = from_worker["message"] if from_worker else str(error)
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}... ({len(message):,} characters)"


def _is_absent(module: str) -> bool:
    """Return whether a module's whole package is missing: a missing part of one that is there is a bug."""
    return importlib.util.find_spec(module.partition(".")[0]) is None


def _end(name: str, message: str, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return status


S = TypeVar("S", bound=Settings)

CHANGES = "changes"
"""Field of a command's settings that takes the changes of something else, such as a recipe."""
_CHANGE = re.compile(r"\w[\w-]*(\.[\w-]+)*=")


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, so that a command answers it in one line like everything else."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            self.print_usage(sys.stderr)
        raise SettingsError(f"{message} (--help lists all options).")


class _Lengthen(argparse.Action):
    """Lets a flag of a list be given several times: `--compare A --compare B` is `--compare A,B`.

    Those of lists with a spelling of their own, such as `none`, win over earlier ones as other flags do.
    """

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


class Command(Generic[S]):
    """A command whose options are declared as settings.

    Every field is a flag and can be set as `field=value` too, which wins. Fields named as positionals stand in order; a
    mapping has no flag, but `field.key=value`.

    Args:
        module: As it is run, for example "training.finetune".
        description: For `--help`.
        settings: Class of the options.
        positionals: Fields without a flag; the last may be a list.
        changes: Class of what `section.field=value` changes where the settings have a field `changes`: a recipe.
        add_shorthands: Adds flags that stand for several.
    """

    def __init__(
        self,
        module: str,
        description: str,
        settings: type[S],
        positionals: Sequence[str] = (),
        changes: type[Settings] | None = None,
        add_shorthands: Callable[[argparse.ArgumentParser], object] | None = None,
    ) -> None:
        self.name = module.rpartition(".")[2]
        self.settings, self.changes = settings, changes
        options = {"prog": f"python -m {module}", "argument_default": argparse.SUPPRESS, "allow_abbrev": False}
        # Words that are no flags are told apart before they are parsed, so that positionals may stand anywhere.
        self._flags = _Parser(add_help=False, **options)
        _add_flags(self._flags, settings, leave_out=(*positionals, CHANGES))
        if add_shorthands is not None:
            add_shorthands(self._flags)
        self._flags.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
        self._parser = _Parser(
            parents=[self._flags],
            description=textwrap.fill(" ".join(description.split()), 100),
            epilog=self._epilog(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        texts = field_texts(settings)
        for name in positionals:
            field = settings.model_fields[name]
            count = "+" if list in kinds_of(field.annotation) else None
            self._parser.add_argument(name, nargs=count, metavar=name.upper(), help=_escaped(texts[name]))

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
            interrupted: What to say after Ctrl-C where the interruption itself says nothing.
            extra: Optional dependency of `pyproject.toml` that has every package which the command may need.
        """
        words = sys.argv[1:] if arguments is None else list(arguments)
        show_traceback = "--traceback" in words
        return run_command(
            self.name,
            lambda: run(self.read(words)),
            show_traceback=show_traceback,
            interrupted=interrupted,
            extra=extra,
        )

    def read(self, words: Sequence[str]) -> S:
        """Return the settings that the words of a command line stand for, and print the usage if one is missing.

        Raises:
            SettingsError: If a flag, a field or a value cannot be.
        """
        words, changes = self._without_changes(words)
        given, rest = self._flags.parse_known_args(words)
        given, unknown = self._parser.parse_known_args(rest, given)
        for word in unknown:
            if word.startswith("-"):
                flags = re.findall(r"--[a-z-]+", self._parser.format_help())
                raise SettingsError(f"Unknown option {word!r}.{did_you_mean(word, flags)} --help lists all.")
        own, others = unknown, []  # what is neither flag nor change is refused as a change without "="
        for word in changes:
            (others if self._is_change_of_others(word) else own).append(word)
        values = {name: self._read(name, text) for name, text in vars(given).items() if name != "traceback"}
        try:
            return load(self.settings, [values | ({CHANGES: others} if others else {})], own)
        except SettingsError as error:
            if any(problem.text == MISSING for problem in error.problems):
                self._parser.print_usage(sys.stderr)
            raise

    def _without_changes(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return flags and positionals, and the changes among the words, which may stand anywhere.

        What follows a flag that must have a value is its value, whatever it looks like.
        """
        needy = {flag for action in self._flags._actions if action.nargs is None for flag in action.option_strings}
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
        if any(isinstance(word, str) and not word.strip() for word in words):  # null to YAML: it would not count
            raise SettingsError(f"`{name}` must be {describe_type(field)}, got {text!r}. Leave it out for its default.")
        try:
            return read_text(text, field) if isinstance(text, str) else text
        except ValueError as error:
            raise SettingsError(f"`{name}` is {error}") from error

    def _epilog(self) -> str:
        """Return what can be set without a flag."""
        lines = ["Every option can be written as field=value too."]
        texts = field_texts(self.settings)
        for name, field in self.settings.model_fields.items():
            if dict in kinds_of(field.annotation):
                lines += _paragraph(f"{name}.KEY=value", texts[name])
        if self.changes is not None:
            lines += ["", f"section.field=value changes the {self.changes.__name__.lower()}:"]
            for path, field, text in list_settings(self.changes):
                lines += _paragraph(f"{path}: {describe_type(field)}{_default(field)}", text)
        return "\n".join(lines)


def _add_flags(parser: argparse.ArgumentParser, model: type[Settings], leave_out: Sequence[str]) -> None:
    """Add a flag for each field; those of a class with a title stand in a group of that name."""
    texts = field_texts(model)
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for name, field in model.model_fields.items():
        kinds = kinds_of(field.annotation)
        if name in leave_out or dict in kinds:
            continue
        parents = [parent for parent in model.__mro__ if issubclass(parent, Settings) and name in parent.model_fields]
        title = parents[-1].title
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag, text = name.replace("_", "-"), _escaped(texts[name] + _default(field))
        if kinds == {bool} and field.default:
            groups[title].add_argument(
                f"--no-{flag}", dest=name, action="store_false", help=f"Switch off: {_escaped(texts[name])}"
            )
        elif kinds == {bool}:
            groups[title].add_argument(f"--{flag}", action="store_true", help=text)
        else:
            is_plain_list = list in kinds and not any(isinstance(rule, Spelling) for rule in field.metadata)
            action = _Lengthen if is_plain_list else "store"
            groups[title].add_argument(f"--{flag}", action=action, metavar=_metavar(name, field), help=text)


def _metavar(name: str, field: FieldInfo) -> str:
    choices, kinds = choices_of(field), kinds_of(field.annotation)
    form = next((rule.form for rule in field.metadata if isinstance(rule, Spelling)), None)
    if form is not None or choices is not None:
        return form or f"{{{','.join(map(str, choices or []))}}}"
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


def _paragraph(title: str, text: str) -> list[str]:
    width = shutil.get_terminal_size().columns - 2
    return [f"  {title}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _escaped(text: str) -> str:
    """Return a text in which argparse finds nothing to fill in."""
    return text.replace("%", "%%")
