"""A plan of a tiny student with two teachers of published architectures, counted once for all tests."""

from collections.abc import Iterator

import pytest
from tiny_plans import RECIPE

from modeling_radio.training.planning import costs as networks_of_plans
from modeling_radio.training.planning.costs import Networks, TeacherCost
from modeling_radio.training.planning.plan import Plan
from modeling_radio.training.recipes.recipe import Recipe, TeacherRecipe, load_recipe


@pytest.fixture(scope="package", autouse=True)
def _each_teacher_is_built_once() -> Iterator[None]:
    """Let all plans share what a teacher costs: building it takes seconds, each size that is counted more."""
    known: dict[tuple[str, int], TeacherCost] = {}

    def cost_of(entry: TeacherRecipe, patch_size: int, others: list[TeacherCost]) -> TeacherCost:
        key = (entry.model_dump_json(exclude={"role", "adaptor"}), patch_size)  # these are of the student
        return known.get(key) or known.setdefault(key, TeacherCost(entry, patch_size, others))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks_of_plans, "TeacherCost", cost_of)
        yield


@pytest.fixture(scope="package")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), ["data.source=unopened"])


@pytest.fixture(scope="package")
def plan(recipe: Recipe, networks: Networks) -> Plan:
    return Plan(recipe, 2, networks)


@pytest.fixture(scope="package")
def networks(recipe: Recipe) -> Networks:
    """Networks of which no pass is counted yet: a plan would count all."""
    return Networks(recipe)
