import pytest
from small_recipes import small_recipe

from training.recipe import Recipe, RecipeError, stage_recipes
from training.recipe_sections import TAP_SCHEMES, BalancingRecipe, ContrastiveRecipe, TapsRecipe


ROLES = {"a": "basic", "b": "semantic", "c": "task"}


def recipe_of(roles: dict[str, str | None] = ROLES, **taps) -> Recipe:
    teachers = [{"name": name, "kind": "k", "role": role} for name, role in roles.items()]
    return Recipe(name="test", data={"source": "s"}, teachers=teachers, taps=taps)


@pytest.mark.parametrize(
    ("taps", "is_used"),
    [
        ({}, False),
        ({"weight": 0}, False),
        ({"weight": 0, "scheme": "strict"}, False),
        ({"weight": 0.1}, True),
        ({"scheme": "strict"}, True),
        ({"weight": 0, "depths": [0.2, 0.5, 1]}, False),
    ],
)
def test_a_scheme_or_a_weight_switches_taps_on(taps: dict, is_used: bool) -> None:
    assert TapsRecipe(**taps).is_used == is_used


@pytest.mark.parametrize("taps", [{"depths": [0.2, 0.5, 1]}, {"targets": "matching"}, {"decay_steps": 3}])
def test_what_is_about_taps_needs_some(taps: dict) -> None:
    with pytest.raises(RecipeError, match=f"`{next(iter(taps))}` must be left out where there are no taps: give a"):
        TapsRecipe(**taps)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (BalancingRecipe, {"start_step": 3}),
        (BalancingRecipe, {"period_steps": 3}),
        (BalancingRecipe, {"ramp_steps": 3}),
        (ContrastiveRecipe, {"bank_size": 64}),
    ],
)
def test_what_would_do_nothing_is_refused(section: type[BalancingRecipe | ContrastiveRecipe], settings: dict) -> None:
    with pytest.raises(RecipeError, match=f"`{next(iter(settings))}` must be left out where .* give a"):
        section(**settings)
    off = {"method": "fixed"} if section is BalancingRecipe else {"weight": 0}
    section(**settings, **off)  # a stage may switch off what the recipe has


def test_weights_that_would_never_move_are_refused() -> None:
    balancing, schedule = {"method": "teacher_dropping", "start_step": 12}, {"num_steps": 12}
    with pytest.raises(RecipeError, match=r"`balancing.start_step` must be below `schedule.num_steps`, 12, or no"):
        small_recipe(balancing=balancing, schedule=schedule)


def test_what_is_left_out() -> None:
    assert recipe_of(weight=0.1).tap_shares() == recipe_of(weight=0.1, scheme="soft").tap_shares()
    assert TapsRecipe(scheme="strict").weight_at(0, 10) == 0.25


@pytest.mark.parametrize("num_steps", [12, 1400])
def test_the_weight_fades_out_over_the_last_three_tenths(num_steps: int) -> None:
    taps = TapsRecipe(weight=0.5)
    weights = [taps.weight_at(step, num_steps) for step in range(num_steps)]
    first = num_steps - -(-3 * num_steps // 10)
    assert weights[: first + 1] == [0.5] * (first + 1)
    assert all(before > after for before, after in zip(weights[first:], weights[first + 1 :], strict=False))
    assert 0 < weights[-1] < 0.1
    middle = num_steps - (num_steps - first) // 2
    assert weights[middle] == pytest.approx(0.25, abs=0.01)


def test_steps_of_the_fading() -> None:
    assert [TapsRecipe(weight=1.0, decay_steps=0).weight_at(step, 4) for step in range(4)] == [1.0] * 4
    assert TapsRecipe(weight=1.0, decay_steps=2).weight_at(3, 4) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scheme", "low", "upper"),
    [
        ("strict", {"a": 1, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1}),
        ("soft", {"a": 0.8, "b": 0.15, "c": 0.05}, {"a": 0.05, "b": 0.15, "c": 0.8}),
    ],
)
def test_who_counts_where(scheme, low: dict[str, float], upper: dict[str, float]) -> None:
    shares = recipe_of(scheme=scheme).tap_shares()
    assert (shares[0], shares[2]) == (low, upper)
    assert len(shares) == 3


def test_every_scheme_gives_each_tap_as_much() -> None:
    for scheme in TAP_SCHEMES:
        for shares in recipe_of(scheme=scheme).tap_shares():
            assert sum(shares.values()) == pytest.approx(1)


def test_roles_decide_and_not_the_order_of_teachers() -> None:
    turned = recipe_of({"c": "task", "a": "basic", "b": "semantic"}, scheme="soft").tap_shares()
    assert turned == recipe_of(scheme="soft").tap_shares()


def test_roles_are_needed_only_where_they_decide() -> None:
    without = {"a": "basic", "b": None}
    recipe_of(without)
    recipe_of(without, scheme="strict", weight=0)
    with pytest.raises(RecipeError, match=r"^`teachers.b.role` must be one of \['basic', .* got None. Say what"):
        recipe_of(without, scheme="strict")


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"scheme": "strct"}, r"^`taps.scheme` must be .*'strict'.* got 'strct'. Did you mean 'strict'\?"),
        ({"scheme": 3}, "^`taps.scheme` must be .*null.*, got 3"),
        ({"scheme": "strict", "depths": [0.5, 1]}, "^`taps.depths` must be three shares above 0 .* in ascending order"),
        ({"scheme": "soft", "depths": [0.5, 0.5, 1]}, "^`taps.depths` must be three shares"),
        ({"scheme": "soft", "depths": [1, 0.5, 0.3]}, "^`taps.depths` must be three shares"),
        ({"scheme": "soft", "depths": [0.331, 0.332, 1]}, "in ascending order and a hundredth apart"),
        ({"scheme": "soft", "depths": [0.3, 0.5, 1.5]}, "^`taps.depths` must be "),
        ({"weight": -1}, "^`taps.weight` must be a number of at least 0, or null, got -1"),
    ],
)
def test_what_cannot_be_is_refused(taps: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(**taps)


def test_stages_have_their_own() -> None:
    recipe = recipe_of(scheme="strict").replace(stages=[{"name": "one"}, {"name": "two", "taps": {"weight": 0}}])
    assert [stage.taps.is_used for stage in stage_recipes(recipe)] == [True, False]
