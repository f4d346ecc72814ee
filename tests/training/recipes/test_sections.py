import pytest

from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.recipes.sections import TAP_SCHEMES, BalancingRecipe, ContrastiveRecipe, TapsRecipe


ROLES = {"a": "basic", "b": "semantic", "c": "task"}


def recipe_of(roles: dict[str, str | None] = ROLES, **taps) -> Recipe:
    teachers = [{"name": name, "kind": "k", "role": role} for name, role in roles.items()]
    return Recipe(name="test", data={"source": "s"}, teachers=teachers, taps=taps)


@pytest.mark.parametrize(
    ("section", "settings", "off"),
    [
        (TapsRecipe, {"depths": [0.2, 0.5, 1]}, {"weight": 0}),
        (TapsRecipe, {"targets": "matching"}, {"weight": 0}),
        (TapsRecipe, {"decay_steps": 3}, {"weight": 0}),
        (BalancingRecipe, {"start_step": 3}, {"method": "fixed"}),
        (BalancingRecipe, {"period_steps": 3}, {"method": "fixed"}),
        (BalancingRecipe, {"ramp_steps": 3}, {"method": "fixed"}),
        (ContrastiveRecipe, {"bank_size": 64}, {"weight": 0}),
    ],
)
def test_what_would_do_nothing_is_refused(section, settings: dict, off: dict) -> None:
    with pytest.raises(RecipeError, match=f"`{next(iter(settings))}` must be left out"):
        section(**settings)
    section(**settings, **off)  # a stage may switch off what the recipe has


@pytest.mark.parametrize("num_steps", [12, 1400])
def test_the_weight_fades_out_over_the_last_three_tenths(num_steps: int) -> None:
    taps = TapsRecipe(weight=0.5)
    weights = [taps.weight_at(step, num_steps) for step in range(num_steps)]
    first = num_steps - -(-3 * num_steps // 10)
    assert weights[: first + 1] == [0.5] * (first + 1)
    assert all(before > after for before, after in zip(weights[first:], weights[first + 1 :], strict=False))
    assert 0 < weights[-1] < 0.1
    assert weights[num_steps - (num_steps - first) // 2] == pytest.approx(0.25, abs=0.01)
    assert [TapsRecipe(weight=1.0, decay_steps=0).weight_at(step, 4) for step in range(4)] == [1.0] * 4
    assert TapsRecipe(weight=1.0, decay_steps=2).weight_at(3, 4) == pytest.approx(0.5)
    assert TapsRecipe(scheme="strict").weight_at(0, 10) == 0.25


def test_roles_decide_who_counts_where_and_not_the_order_of_teachers() -> None:
    strict, soft = (recipe_of(scheme=scheme).tap_shares() for scheme in ("strict", "soft"))
    assert (strict[0], strict[2]) == ({"a": 1, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1})
    assert (soft[0], soft[2]) == ({"a": 0.8, "b": 0.15, "c": 0.05}, {"a": 0.05, "b": 0.15, "c": 0.8})
    assert soft == recipe_of(weight=0.1).tap_shares()
    assert soft == recipe_of({"c": "task", "a": "basic", "b": "semantic"}, scheme="soft").tap_shares()
    for scheme in TAP_SCHEMES:
        assert [sum(shares.values()) for shares in recipe_of(scheme=scheme).tap_shares()] == pytest.approx([1] * 3)


def test_roles_are_needed_only_where_they_decide() -> None:
    without = {"a": "basic", "b": None}
    recipe_of(without)
    recipe_of(without, scheme="strict", weight=0)
    with pytest.raises(RecipeError, match=r"^`teachers.b.role` .*\['basic', .* got None"):
        recipe_of(without, scheme="strict")


@pytest.mark.parametrize(
    "taps",
    [
        *({"scheme": scheme} for scheme in ("strct", 3)),
        *({"scheme": "soft", "depths": depths} for depths in ([0.5, 1], [0.5, 0.5, 1], [1, 0.5, 0.3], [0.3, 0.5, 1.5])),
        {"scheme": "soft", "depths": [0.331, 0.332, 1]},
        {"weight": -1},
    ],
)
def test_what_cannot_be_is_refused(taps: dict) -> None:
    with pytest.raises(RecipeError, match=f"^`taps.{list(taps)[-1]}` must be "):
        recipe_of(**taps)
