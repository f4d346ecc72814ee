"""Recipes that hold nothing but what a test is about."""

from typing import Any

from modeling_radio.training.recipes.recipe import Recipe


def small_recipe(*teachers: str, **sections: Any) -> Recipe:
    """Return a valid recipe.

    Args:
        teachers: Names of its teachers, of a kind that does not exist; one by default.
        sections: The other sections, as settings or as mappings of their fields.
    """
    entries = [{"name": name, "kind": "k"} for name in teachers or ("t",)]
    return Recipe(**{"name": "test", "data": {"source": "s"}, "teachers": entries, **sections})
