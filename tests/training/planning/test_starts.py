"""Starts of kernels, beside those that `benchmarks.kernels` counted in a real step."""

import json
import re

import pytest
from documentation import ROOT

from modeling_radio.training.planning.costs import Networks
from modeling_radio.training.planning.starts import Calls, calls_of_rank, count_starts
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.views.shapes import Grid


RECIPES = {
    "radio_s": (12, 4, {"c-radio": 32}),
    "c_radio_v4_h": (32, 3, {"siglip2-g": 40, "dino_v3_7b": 40, "sam3": 32}),
}
"""Blocks of the student, number of teachers, and blocks of each of their networks."""


def test_starts_are_within_15_percent_of_those_of_a_real_step() -> None:
    (table,) = map(json.loads, (ROOT / "benchmarks" / "results" / "kernels.jsonl").read_text().splitlines())
    counted = {("radio_s", 8), ("radio_s", 64), ("c_radio_v4_h", 64)}
    assert {(row["recipe"], row["GPUs"]) for row in table["rows"]} == counted
    for row in table["rows"]:
        student, num_teachers, teachers = RECIPES[row["recipe"]]
        numbers = {name: int(number) for name, number in re.findall(r"(\S+) (\d+) of", row["calls of tokens"])}
        calls = Calls(row["passes"], row["shapes"], num_teachers * row["shapes"], numbers)
        assert count_starts(calls, student, teachers) == pytest.approx(row["starts"], rel=0.15)


def test_calls_are_one_for_each_shape_and_canvas(networks: Networks, recipe: Recipe) -> None:
    small, middle, large = Grid(2, 2), Grid(4, 4), Grid(8, 8)
    own = {"low": [[small, middle, middle], []], "high": [[large]]}
    calls = calls_of_rank(networks, recipe, own)
    assert calls == Calls(passes=3, shapes=4, seen=5, teachers={"siglip2-g": 3, "sam3": 1})  # a dummy has no teachers
    assert calls_of_rank(networks, recipe.replace(views={"teachers": "cached"}), own).teachers == {}
    apart = {"low": [[small], [small, middle]]}
    assert calls_of_rank(networks, recipe, apart).teachers == {"siglip2-g": 3, "sam3": 2}
    together = recipe.replace(views={"parts_at_once": 2})
    assert calls_of_rank(networks, together, apart).teachers == {"siglip2-g": 2, "sam3": 1}
