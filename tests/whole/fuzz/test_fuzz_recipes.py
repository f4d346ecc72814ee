"""Recipes with anything anywhere, files and command lines of any text: read, or refused in one line of ours."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_radio.core.settings import SettingsError, load, read_yaml
from modeling_radio.training.distill import COMMAND
from modeling_radio.training.recipes.recipe import (
    Recipe,
    RecipeError,
    list_recipes,
    load_recipe,
    save_recipe,
    stage_recipes,
)


pytestmark = pytest.mark.fuzz


@cache
def plain_recipe(name: str) -> dict[str, Any]:
    return load_recipe(name, ["data.source=images"]).to_dict()


WORDS = [
    "",
    "x",
    "null",
    "None",
    "no",
    "1e3",
    "${oc.env:HOME}",
    "keys",
    "a.b",
    "../x",
    "\0",
    "native",
    "demo",
    "[",
    "*",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "kind", "source", "weight"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places_in(values: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of all that a recipe holds: sections, fields, entries of lists."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(place for key, value in inner for place in places_in(value, (*path, key)))]


@st.composite
def mutated_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a shipped recipe with one to three things replaced, added or left out."""
    name = draw(st.sampled_from(sorted(list_recipes())))
    recipe = json.loads(json.dumps(plain_recipe(name)))
    for place in draw(st.lists(st.sampled_from(places_in(recipe)[1:]), min_size=1, max_size=3)):
        mutate(recipe, place, draw)
    return recipe


def mutate(values: Any, place: tuple, draw: st.DrawFn) -> None:
    *above, last = place
    try:
        for key in above:
            values = values[key]
        if isinstance(values, dict) and draw(st.booleans()):
            last = draw(st.sampled_from([last, "unknown", "name"]))
        if draw(st.integers(0, 9)) == 0:
            del values[last]
        else:
            values[last] = draw(VALUES)
    except (KeyError, IndexError, TypeError):
        return  # an earlier mutation has replaced what held it


def assert_one_line(error: Exception, *words: str) -> None:
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words)


@given(mutated_recipes())
def test_any_recipe_is_refused_in_one_line_or_reads_back(values: dict[str, Any]) -> None:
    try:
        recipe = load(Recipe, [values])
        stage_recipes(recipe)
    except RecipeError as error:
        assert_one_line(error)
        return
    assert load(Recipe, [json.loads(json.dumps(recipe.to_dict(), allow_nan=False))]) == recipe


@settings(max_examples=settings.default.max_examples // 5)  # YAML is slow
@given(mutated_recipes())
def test_any_recipe_file_is_refused_in_one_line_or_saved_as_another(tmp_path: Path, values: dict[str, Any]) -> None:
    path, saved = tmp_path / "mine.yaml", tmp_path / "saved.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        recipe = load_recipe(str(path))
    except RecipeError as error:
        assert_one_line(error, "mine.yaml")
        return
    save_recipe(recipe, saved)
    assert load_recipe(str(saved)) == recipe


PARTS = st.sampled_from(
    [
        "teachers",
        "optimizer",
        "0",
        "nanodet-g",
        "options",
        "data",
        "source",
        "low",
        "partitions",
        "student",
        "config",
        "x",
    ]
)
KEYS = st.lists(PARTS | st.sampled_from(["", "-1", "99", "'"]), max_size=5).map(".".join)
TEXTS = st.text(max_size=8) | st.sampled_from(WORDS) | VALUES.map(lambda value: yaml.safe_dump(value).strip())


@given(st.lists(st.tuples(KEYS, st.sampled_from(["=", "", "=="]), TEXTS).map("".join), max_size=3))
def test_any_changes_are_refused_in_one_line_or_made(changes: list[str]) -> None:
    try:
        load(Recipe, [plain_recipe("demo")], changes)
    except RecipeError as error:
        assert_one_line(error)


FLAGS = st.sampled_from(
    ["--recipe", "--output", "--stop-at", "--restart", "--traceback", "--stop_at", "--", "-x", "demo"]
)


@given(st.lists(FLAGS | TEXTS | st.tuples(KEYS, st.just("="), TEXTS).map("".join), max_size=4))
def test_any_command_line_is_refused_in_one_line_or_read(words: list[str]) -> None:
    try:
        COMMAND.read([word for word in words if word not in ("-h", "--help")])
    except SettingsError as error:
        assert_one_line(error)


SIGNS = list("!&*-?:,[]{}|>#%'\" \n\t")
TOKENS = ["a", "b", "1", "0b_", "0x", "1:30", ".inf", "&x ", "*x ", "<<", ": ", "- ", "---", "..."]
TAGS = ["!!int ", "!!float ", "!!null ", "!!bool ", "!!map ", "!!seq ", "!!str ", "!!set ", "!!binary "]
YAML_PIECES = st.sampled_from([*SIGNS, *TOKENS, *TAGS])


@given(st.lists(YAML_PIECES | st.text(max_size=2), max_size=12).map("".join) | st.text(max_size=30))
def test_any_text_is_yaml_of_plain_values_or_refused_in_one_line(text: str) -> None:
    try:
        value = read_yaml(text)
    except ValueError as error:
        assert_one_line(error, "not YAML: ")
        return
    json.dumps(value)  # nothing but mappings with texts as keys, lists, texts, numbers, booleans, null
