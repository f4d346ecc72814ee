"""All commands declare their options in the same way, and say what each one means."""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import modeling_radio_cli
from modeling_radio.core import machine
from modeling_radio.core.command_line import Command
from modeling_radio.core.settings import SettingsError, field_texts, list_settings, load, section_of
from modeling_radio.training.recipes.recipe import Recipe


NAMED = {name: module for name, (module, _) in modeling_radio_cli.COMMANDS.items()} | modeling_radio_cli.MORE_COMMANDS
FORMATS = [module for formats in modeling_radio_cli.FORMATS.values() for module in formats.values()]
MODULES = ["benchmarks.all", *(f"modeling_radio.{module}" for module in (*NAMED.values(), *FORMATS))]


def command_of(module: str) -> Command:
    return importlib.import_module(module).COMMAND


def test_every_option_and_every_field_of_a_recipe_is_explained():
    classes = {module: command_of(module).settings for module in MODULES}
    texts = {module: field_texts(settings) for module, settings in classes.items()}
    options = [(module, name) for module, settings in classes.items() for name in settings.model_fields]
    assert [(module, name) for module, name in options if not texts[module].get(name)] == []
    assert [setting.path for setting in list_settings(Recipe) if not setting.text] == []


def test_help_shows_every_explanation(capsys):
    command = command_of("modeling_radio.prediction.predict")
    with pytest.raises(SystemExit) as end:
        command.read(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: {command.name} " in shown
    letters = "".join(shown.split())  # lines also end within words with a hyphen
    first = ["".join(text.split(".")[0].split()) for name, text in field_texts(command.settings).items()]
    assert [text for text in first if text not in letters] == []


@pytest.mark.parametrize("module", [module for module in MODULES if command_of(module).changes is not None])
def test_a_command_and_the_recipe_share_no_field(module):
    """A change is told from an option by its first word, or where that is a section of the recipe by what follows."""
    command = command_of(module)
    assert command.changes is Recipe
    for name in command.settings.model_fields.keys() & Recipe.model_fields.keys():
        assert section_of(Recipe.model_fields[name].annotation) is not None
        assert section_of(command.settings.model_fields[name].annotation) is None


def test_an_empty_path_is_refused():
    """A variable of the shell that isn't set must not stand for the working directory, nor for the default."""
    with pytest.raises(SettingsError, match="`output`"):
        load(command_of("modeling_radio.training.distill").settings, [], ["recipe=demo", "output="])


def test_a_device_that_the_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: ["cpu"])
    settings = command_of("modeling_radio.prediction.predict").settings
    given = [f"{name}=x" for name, field in settings.model_fields.items() if field.is_required()]
    assert load(settings, [], [*given, "device=cpu"]).device == "cpu"
    with pytest.raises(SettingsError, match="`device`"):
        load(settings, [], [*given, "device=cuda"])


SHARED = ("core", "training", "figures", "metrics")
"""Folders whose messages are of several commands."""
OF_OTHER_PROGRAMS = {"--shutdown-timeout", "--repo-type", "--local-dir"}
"""Options of torchrun and hf."""


def messages_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file that have an option, but docstrings; a value within is "X"."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"--[a-z]", text):
        return
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr | ast.JoinedStr):
            left_out |= {id(each) for each in ast.iter_child_nodes(node)}  # docstrings and parts of what is yielded
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def test_messages_only_name_options_that_their_command_has():
    """The command is the one that the message names, or one of the folder."""
    options, of_folder = defaultdict(set), defaultdict(set)
    for name, module in NAMED.items():
        formats = modeling_radio_cli.FORMATS.get(name, {})
        for each in (module, *formats.values()):
            parser = command_of(f"modeling_radio.{each}").parser
            options[name] |= {flag for action in parser._actions for flag in action.option_strings}
        options[name] |= {"--to"} if formats else set()
        of_folder[module.partition(".")[0]] |= options[name]
    of_all = set().union(*options.values()) | OF_OTHER_PROGRAMS
    root, wrong = Path(modeling_radio_cli.__file__).parent, []
    for folder in (*of_folder, *SHARED):
        for path in (root / folder).rglob("*.py"):
            for text in messages_of(path) if path.name != "packages.py" else ():  # pip's and npm's
                for found in re.finditer(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", text):
                    commands = re.findall(r"\bradio ([a-z-]+)", text[: found.start()])
                    known = of_all if folder in SHARED else of_folder[folder] | OF_OTHER_PROGRAMS
                    if found[0] not in (known | options[commands[-1]] if commands else known):
                        wrong.append(f"{path.relative_to(root)}: {text}")
    assert wrong == []
