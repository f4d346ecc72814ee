"""What a repository says of itself on its host: badges, citation, forms, workflow, releases."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from documentation import PROJECT, ROOT


BADGES = ROOT / "docs" / "pictures" / "badges"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def citation() -> dict[str, Any]:
    return yaml.safe_load(read("CITATION.cff"))


def requirement(package: str) -> str:
    (text,) = [each for each in PROJECT["dependencies"] if each.startswith(package)]
    return text


def badge(name: str) -> str:
    """Return what a badge shows."""
    return re.findall(r'aria-label="(.*?)"', (BADGES / f"{name}.svg").read_text(encoding="utf-8"))[0]


def test_badges_are_true() -> None:
    lowest = re.fullmatch(r">=(\d+\.\d+)", PROJECT["requires-python"])
    assert badge("python") == f"Python: {lowest[1]} or newer"
    assert badge("license") == f"license: {PROJECT['license']}"
    first, last = re.fullmatch(r"transformers>=(\d+\.\d+),<(\d+)", requirement("transformers")).groups()
    assert badge("transformers") == f"transformers: {first} to {int(last) - 1}.x"


@pytest.mark.parametrize("path", sorted(BADGES.glob("*.svg")), ids=lambda path: path.stem)
def test_badges_show_what_they_say(path) -> None:
    content = path.read_text(encoding="utf-8")
    assert re.findall(r"<text.*?>(.*?)</text>", content) == badge(path.stem).split(": ")
    assert f'src="docs/pictures/badges/{path.name}"' in read("README.md")


def test_the_citation_is_of_this_project_and_names_no_person() -> None:
    entry = citation()
    assert (entry["version"], entry["license"]) == (PROJECT["version"], PROJECT["license"])
    assert [list(author) for author in entry["authors"]] == [["name"]]
    assert "contributors" in entry["authors"][0]["name"]
    assert all(re.match(r"https://arxiv\.org/abs/\d{4}\.\d{5}$", reference["url"]) for reference in entry["references"])


def test_the_workflow_runs_what_everybody_runs() -> None:
    job = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert f">={job['strategy']['matrix']['python'][0]}" == PROJECT["requires-python"]


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_forms_are_forms(path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_the_changelog_has_the_version_or_says_that_it_is_unreleased() -> None:
    headings = re.findall(r"^## \[(.*?)\]( - \d{4}-\d{2}-\d{2})?$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    released = [name for name, _ in headings[1:]]
    assert not released or released[0] == PROJECT["version"]


@pytest.mark.parametrize("name", ["README.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CONTRIBUTING.md", "CITATION.cff"])
def test_no_address_is_invented(name) -> None:
    assert re.findall(r"[\w.]+@[\w-]+\.\w+", read(name)) == []


def test_readme_lists_every_extra() -> None:
    (table,) = re.findall(r"^\| extra \|.*\n\|.*\n((?:\|.*\n)+)", read("README.md"), re.MULTILINE)
    listed = {name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert listed == set(PROJECT["optional-dependencies"])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("browser", ["chromium", "google-chrome", None])
def test_a_tour_installs_a_browser_only_where_there_is_none(browser: str | None, tmp_path: Path) -> None:
    texts = {"bin/python": "", "bin/pip": "", "tools/id": "echo 0", "tools/apt-get": f"echo $1 >> {tmp_path}/installed"}
    for name, text in {**texts, **({f"tools/{browser}": ""} if browser else {})}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "installed-dev").touch()
    command = [str(shutil.which("make")), "tour", f"VENV={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path / "tools")}, check=True)
    assert (tmp_path / "installed").exists() == (browser is None)
