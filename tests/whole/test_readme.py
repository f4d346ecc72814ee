"""What training/README.md says must be so: files, recipes, fields and commands."""

import re
import shlex
from pathlib import Path

import pytest

import training
from foundation.fields import entry_of, section_of
from training.recipe import Recipe, load_recipe


FOLDER = Path(training.__file__).parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
DISTILLATIONS = [line for line in COMMANDS if "training.distill" in line and "--list-recipes" not in line]


def test_every_file_has_its_place_in_the_map() -> None:
    rows = dict(re.findall(r"^\| `([\w./]+/)` \| (.*) \|$", TEXT, re.MULTILINE))
    named = {
        f"{folder}{name}".removeprefix("./")
        for folder, text in rows.items()
        for name in re.findall(r"`(\w+\.py)`", text)
    }
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if path.name != "__init__.py"}
    assert named == files


@pytest.mark.parametrize("command", DISTILLATIONS)
def test_distillations_have_a_valid_recipe(command: str) -> None:
    words = shlex.split(command, comments=True)
    overrides = [word for word in words if "=" in word]
    recipe = load_recipe(words[words.index("--recipe") + 1], overrides)
    assert "data.source=" in command or recipe.data.source == "demo"
    if "--config_file" in words:
        assert (FOLDER.parent / words[words.index("--config_file") + 1]).is_file()


def test_comparison_names_recipes_with_equal_data() -> None:
    (command,) = [line for line in COMMANDS if "training.compare" in line]
    words = shlex.split(command)
    first, second = (load_recipe(name, [words[-1]]) for name in words[3:5])
    assert (first.data, first.teachers) == (second.data, second.teachers)


def test_the_recipe_files_that_are_shown_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    recipes = []
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL):
        path.write_text(block)
        recipes.append(load_recipe(str(path)))
    recipe, mixed = recipes
    assert [entry.weight for entry in mixed.data.sources()] == [0.95, 0.05]
    assert [teacher.name for teacher in recipe.teachers] == ["dino_v2", "siglip2"]
    assert recipe.views.teachers == "online"
    assert recipe.student.config["max_img_size"] >= max(max(entry.sizes_px) for entry in recipe.partitions)


def test_every_section_of_a_recipe_is_explained() -> None:
    fields = {name: field.annotation for name, field in Recipe.model_fields.items()}
    sections = {name for name, kind in fields.items() if section_of(kind) or entry_of(kind)} | {"stages"}
    (table,) = re.findall(r"\| section \| decides .*?\n\n", TEXT, re.DOTALL)
    explained = {name for line in table.strip().splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert explained == sections


def test_links_lead_somewhere() -> None:
    assert [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not (FOLDER / link).exists()] == []
