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
from modeling_radio.core.command_line import CHANGES, Command
from modeling_radio.core.settings import SettingsError, field_texts, kinds_of, list_settings, load, section_of
from modeling_radio.training.recipes.recipe import Recipe


MODULES = (
    "modeling_radio.training.distill",
    "modeling_radio.evaluation.evaluate",
    "modeling_radio.demo.results",
    "modeling_radio.studies.__main__",
    "modeling_radio.training.upsampler",
    "modeling_radio.training.plan",
    "modeling_radio.demo.__main__",
    "modeling_radio.demo.add_words",
    "modeling_radio.tuning.finetune",
    "modeling_radio.tuning.merge",
    "modeling_radio.prediction.predict",
    "modeling_radio.prediction.label",
    "modeling_radio.publishing.publish",
    "modeling_radio.extraction.extract",
    "modeling_radio.extraction.search",
    "modeling_radio.serving.app.__main__",
    "modeling_radio.serving.serve",
    "modeling_radio.conversion.convert",
    "modeling_radio.conversion.compare_release",
    "modeling_radio.conversion.to_nvidia",
    "modeling_radio.conversion.to_timm",
    "modeling_radio.conversion.export",
    "modeling_radio.conversion.graphs.sam3_to_onnx",
    "modeling_radio.conversion.to_web",
    "modeling_radio.model_cards.card",
    "modeling_radio.core.doctor",
    "modeling_radio.core.completion",
    "benchmarks.all",
)


def command_of(module: str) -> Command:
    return importlib.import_module(module).COMMAND


@pytest.mark.parametrize("module", MODULES)
def test_help_explains_every_option(module, capsys):
    command = command_of(module)
    with pytest.raises(SystemExit) as end:
        command.read(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: {command.name} " in shown
    texts = field_texts(command.settings)
    assert [name for name in command.settings.model_fields if not texts.get(name)] == []
    letters = "".join(shown.split())  # lines also end within words with a hyphen
    first = {name: "".join(text.split(".")[0].split()) for name, text in texts.items() if name != CHANGES}
    missing = [name for name, text in first.items() if text not in letters]
    assert missing == []


@pytest.mark.parametrize("module", [module for module in MODULES if command_of(module).changes is not None])
def test_a_command_and_the_recipe_share_no_field(module):
    """A change is told from an option by its first word, or where that is a section of the recipe by what follows."""
    command = command_of(module)
    assert command.changes is Recipe
    for name in command.settings.model_fields.keys() & Recipe.model_fields.keys():
        assert section_of(Recipe.model_fields[name].annotation) is not None
        assert section_of(command.settings.model_fields[name].annotation) is None


def test_every_field_of_a_recipe_is_explained():
    assert [setting.path for setting in list_settings(Recipe) if not setting.text] == []


PATHS = [
    pytest.param(module, name, id=f"{module}-{name}")
    for module in MODULES
    for name, field in command_of(module).settings.model_fields.items()
    if Path in kinds_of(field.annotation)
]


@pytest.mark.parametrize(("module", "name"), PATHS)
def test_an_empty_path_is_refused(module, name):
    """A variable of the shell that isn't set must not stand for the working directory, nor for the default."""
    with pytest.raises(SettingsError, match=rf"`{name}` must be a path( or a text)?(, or null)?, got ''\."):
        load(command_of(module).settings, [], [f"{name}="])


WITHOUT_DEVICE = (
    # They compute nothing, or rewrite and trace weights, for which the main memory is the place.
    "modeling_radio.training.plan",
    "modeling_radio.demo.add_words",
    "modeling_radio.tuning.merge",
    "modeling_radio.publishing.publish",
    "modeling_radio.conversion.convert",
    "modeling_radio.conversion.to_nvidia",
    "modeling_radio.conversion.to_timm",
    "modeling_radio.conversion.export",
    "modeling_radio.conversion.graphs.sam3_to_onnx",
    "modeling_radio.conversion.to_web",
    "modeling_radio.model_cards.card",
    "modeling_radio.core.doctor",
    "modeling_radio.core.completion",
)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in (*WITHOUT_DEVICE, "benchmarks.all")])
def test_a_device_that_the_machine_lacks_is_refused(module, monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: ["cpu"])
    settings = command_of(module).settings
    given = [f"{name}=x" for name, field in settings.model_fields.items() if field.is_required() and name != "task"]
    given += ["task=image-classification"] * ("task" in settings.model_fields)
    assert load(settings, [], [*given, "device=cpu"]).device == "cpu"
    with pytest.raises(SettingsError, match=r"^`device` must be one of \['cpu'\], got 'cuda'\.$"):
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
    named = {name: module for name, (module, _) in modeling_radio_cli.COMMANDS.items()}
    options, of_folder = defaultdict(set), defaultdict(set)
    for name, module in (named | modeling_radio_cli.MORE_COMMANDS).items():
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
