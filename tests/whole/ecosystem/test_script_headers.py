"""What the scripts say that they need: all of it, in the ranges that this project supports, as uv reads it."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import PROJECT, ROOT, tomllib
from packaging.requirements import Requirement


SCRIPTS = sorted((ROOT / "notebooks" / "scripts").glob("*.py"))
HEADER = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # as PEP 723 writes it
DISTRIBUTIONS = {"PIL": "pillow"}
"""Of modules with another name."""
REMOTE_CODE = {"safetensors", "torch", "torchvision", "transformers"}
"""What a checkpoint's own code needs, in scripts that open one."""
BROUGHT = {"numpy", "pillow", "safetensors"}
"""May be named though no line imports them: transformers makes images and arrays, and reads weights, by them."""


def header(path: Path) -> dict:
    (match,) = HEADER.finditer(path.read_text(encoding="utf-8"))
    return tomllib.loads(re.sub(r"^# ?", "", match["content"], flags=re.MULTILINE))


def requirements(path: Path) -> dict[str, Requirement]:
    return {each.name: each for each in map(Requirement, header(path)["dependencies"])}


def needed(path: Path) -> set[str]:
    """Return the distributions that the script's imports ask for."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    third = {DISTRIBUTIONS.get(name, name) for name in names - set(sys.stdlib_module_names)}
    return third | REMOTE_CODE if "transformers" in third else third


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_headers_name_what_is_imported_and_no_more(path):
    named = requirements(path).keys()
    assert needed(path) <= named
    assert named <= needed(path) | BROUGHT


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_ranges_are_those_of_this_project(path):
    assert header(path)["requires-python"] == PROJECT["requires-python"]
    extras = (text for texts in PROJECT["optional-dependencies"].values() for text in texts)
    # What an extra asks for besides of a package that all need does not count.
    ranges = {each.name: each.specifier for each in map(Requirement, [*extras, *PROJECT["dependencies"]])}
    for name, requirement in requirements(path).items():
        assert requirement.specifier == ranges[name], name
        assert requirement.specifier.contains(importlib.metadata.version(name))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_uv_reads_the_header(path, tmp_path):
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv (extra `dev`)")

    def interpreter(script: Path) -> subprocess.CompletedProcess[str]:
        command = [uv, "python", "find", "--offline", "--no-python-downloads", "--script", str(script)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert interpreter(path).returncode == 0
    broken = tmp_path / "broken.py"
    broken.write_text(path.read_text(encoding="utf-8").replace('"pillow>=', '"pillow>=>'))
    assert "TOML parse error" in interpreter(broken).stderr
