"""A plan of a tiny student with two teachers of published architectures, counted once for all tests."""

import pytest
from tiny_plans import RECIPE

from training.planning.networks import Networks
from training.planning.plan import Plan
from training.recipe import Recipe, load_recipe


@pytest.fixture(scope="package")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), ["data.source=unopened"])


@pytest.fixture(scope="package")
def plan(recipe: Recipe) -> Plan:
    return Plan(recipe, 2)


@pytest.fixture(scope="package")
def networks(plan: Plan) -> Networks:
    return plan.networks
