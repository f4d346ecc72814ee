"""Recipes in the guides are valid, and links lead somewhere."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from documentation import PAGES, ROOT, blocks

from modeling_radio.core.settings import entry_of, section_of
from modeling_radio.studies.study import open_study
from modeling_radio.training.recipes.recipe import Recipe, load_recipe


def test_the_recipe_files_that_are_shown_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    recipes: dict[str, list[Recipe]] = defaultdict(list)
    for block in blocks("yaml"):
        path.write_text(block.text)
        if "\narms:" in block.text:  # a study
            assert len(open_study(str(path)).recipes) == 2
        else:
            recipes[block.page].append(load_recipe(str(path)))
    (recipe,) = recipes["docs/how-to/distill.md"]
    weights = [[entry.weight for entry in each.data.sources()] for each in recipes["docs/how-to/data.md"]]
    assert [0.95, 0.05] in weights
    assert [teacher.name for teacher in recipe.teachers] == ["dino_v2", "siglip2"]
    assert recipe.views.teachers == "online"
    assert recipe.student.config["max_img_size"] >= max(max(entry.sizes_px) for entry in recipe.partitions)


def test_every_section_of_a_recipe_is_explained() -> None:
    fields = {name: field.annotation for name, field in Recipe.model_fields.items()}
    sections = {name for name, kind in fields.items() if section_of(kind) or entry_of(kind)} | {"hooks", "stages"}
    text = (ROOT / "docs" / "how-to" / "distill.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| section \| decides .*?\n\n", text, re.DOTALL)
    explained = {name for line in table.strip().splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert explained == sections


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """As files; anchors, and links as the site has them, are checked when it is built."""
    folder, text = (ROOT / page).parent, (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|href|srcset)=\"([^\"#]+)\"", text)
    local = [link for pair in links for link in pair if link and not re.match(r"\w+:", link)]
    assert [link for link in local if not (folder / link).exists()] == []
