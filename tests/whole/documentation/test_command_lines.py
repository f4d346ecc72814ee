"""Every command line of README, docs and `--help` is one that its command takes."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from documentation import PROJECT, ROOT, blocks

from modeling_radio.core.command_line import Command
from modeling_radio.training.recipes.recipe import Recipe, load_recipe
from modeling_radio_cli import COMMANDS, FORMATS, MORE_COMMANDS, find_module


OURS = ("benchmarks", "notebooks")
"""Packages whose commands run in a clone alone."""
OTHERS = {
    *("bash", "curl", "trtexec", "uv", "source", "tensorboard", "hf", "git", "cd", "cp", "pre-commit"),
    "vllm",
}
"""Programs of others, which are not looked into."""
LAUNCHERS = {"sbatch", "sky", "kubectl", "python"}
"""Programs of others that read a file of `deploy/`."""
EXTRAS = set(PROJECT["optional-dependencies"])
CONFIGS = re.compile(r"CONFIGS=\$\(python -c \"(.*)\"\)(/\w+)$")
"""The line that finds Accelerate's configurations in the package; later ones name `$CONFIGS`."""
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Line(NamedTuple):
    """A command line, and the page that it stands on."""

    page: str
    text: str


def shown_lines() -> list[Line]:
    """Return the lines of shell blocks, continued ones joined, and the examples of `--help`."""
    lines: list[Line] = []
    for block in blocks("bash"):
        texts = (" ".join(text.split()) for text in block.text.replace("\\\n", " ").splitlines())
        lines += [Line(block.page, text) for text in texts if text and not text.startswith("#")]
    for name, module in [(name, module) for name, (module, _) in COMMANDS.items()] + [*MORE_COMMANDS.items()]:
        for each in (module, *FORMATS.get(name, {}).values()):
            lines += [Line(f"{name} --help", text) for text in command_of(f"modeling_radio.{each}").examples]
    return lines


def identifier(line: Line) -> str:
    return f"{Path(line.page).stem}-{line.text[:70]}"


def words_of(text: str) -> list[str]:
    """Return the words of a line without variables of the environment in front."""
    words = shlex.split(text, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    return words


def check(words: list[str]) -> None:
    """Raise if a command does not take the words of a line."""
    program, *rest = [word.replace("$CONFIGS", "training/accelerate_configs") for word in words]
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS
    elif program in ("pip", "uvx"):
        assert rest[0] == ("install" if program == "pip" else "--from")
        if program == "uvx":
            check(rest[2:])
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[([\w,]+)\]", " ".join(rest))))) <= EXTRAS
    elif program == "radio":
        check_radio(rest)
    elif "-m" in rest:
        place = rest.index("-m")
        if "--config_file" in rest[:place]:
            assert (ROOT / rest[rest.index("--config_file") + 1]).is_file()
        check_module(rest[place + 1], rest[place + 2 :])
    elif program in LAUNCHERS:
        [file] = [word for word in rest if word.startswith("deploy/")]
        assert (ROOT / file).is_file()
        if "--recipe" in rest:
            check_radio(["distill", *rest[rest.index("--recipe") :]])
    else:
        assert program in OTHERS, f"unknown program {program!r}"


def check_module(module: str, words: list[str]) -> None:
    if module == "modeling_radio":
        check_radio(words)
        return
    assert importlib.util.find_spec(module) is not None, f"no module {module!r}"
    if module.partition(".")[0] in OURS:
        check_command(module, words)


def check_radio(words: list[str]) -> None:
    if words == ["--help"]:
        return
    module, rest = find_module(words[0], words[1:])
    assert module is not None, rest
    check_command(f"modeling_radio.{module}", rest)


def command_of(module: str) -> Command:
    command = importlib.import_module(module).COMMAND
    assert isinstance(command, Command)
    return command


def check_command(module: str, words: list[str]) -> None:
    command = command_of(module)
    if words in (["--help"], ["--list-recipes"]):
        return
    settings = command.read(words)
    recipe, changes = getattr(settings, "recipe", None), getattr(settings, "changes", [])
    if command.changes is Recipe and recipe is not None and not str(recipe).endswith(".yaml"):
        # What a run costs is counted without images.
        load_recipe(recipe, [*changes, *(["data.source=unopened"] if module.endswith(".plan") else [])])


@pytest.mark.parametrize("line", sorted(set(shown_lines())), ids=identifier)
def test_shown_lines_are_taken(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    found = CONFIGS.match(line.text)
    if found is None:
        check(words_of(line.text))
        return
    exec(found[1], {})
    assert Path(capsys.readouterr().out.strip() + found[2]) == ROOT / "training" / "accelerate_configs"
