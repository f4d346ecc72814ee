import pytest

from modeling_radio.training.recipes.recipe import Recipe, RecipeError


def recipe_of(roles: dict[str, str | None], **taps) -> Recipe:
    teachers = [{"name": name, "kind": "k", "role": role} for name, role in roles.items()]
    return Recipe(name="test", data={"source": "s"}, teachers=teachers, taps=taps)


def test_roles_are_needed_only_where_they_decide() -> None:
    without = {"a": "basic", "b": None}
    recipe_of(without)
    recipe_of(without, weight=0)
    with pytest.raises(RecipeError, match=r"^`teachers.b.role` .*\['basic', .* got None"):
        recipe_of(without, weight=0.25)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^`taps\.weight` must be "):
        recipe_of({"a": "basic"}, weight=-1)
