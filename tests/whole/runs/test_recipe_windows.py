"""The windows that shipped recipes and studies draw change what the student answers, at their own sizes and depth."""

from collections.abc import Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.studies.study import list_studies, open_study
from modeling_radio.training import plan
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.recipes.recipe import (
    PartitionRecipe,
    Recipe,
    RecipeError,
    list_recipes,
    load_recipe,
    stage_recipes,
)
from modeling_radio.training.student.build import check_student_views, student_patch_size
from modeling_radio.training.views.shapes import Grid
from modeling_radio.training.views.windows import draw_window, fitting_windows


pytestmark = pytest.mark.usefixtures("one_thread")

# Too narrow for anything but to tell one attention from another.
NARROW = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_cls_tokens": 1, "summary_idxs": [0]}
MAX_FAST_PX = 512


class Case(NamedTuple):
    """One resolution of a partition."""

    recipe: str
    stage: str
    partition: PartitionRecipe
    size_px: int


def load(name: str) -> list[Recipe]:
    """Return the stages of a recipe, or of an arm, which is named STUDY/ARM."""
    if "/" in name:
        study, arm = name.split("/")
        return [arms_of(study)[arm]]
    recipe = load_recipe(name, ["data.source=images"])
    return stage_recipes(recipe) or [recipe]


@cache
def arms_of(study: str) -> Mapping[str, Recipe]:
    return open_study(study).recipes


@cache
def cases() -> list[Case]:
    found: dict[tuple, Case] = {}
    arms = [f"{study}/{arm}" for study in list_studies() for arm in arms_of(study)]
    for name in [*list_recipes(), *arms]:
        for stage in load(name):
            for partition in stage.partitions:
                for size in partition.sizes_px if partition.vitdet_windows else []:
                    fields = (stage.student.preset, str(stage.student.config), size, str(partition.vitdet_windows))
                    # c_radio_v3 has the resolutions of radio_v2.5, on the same trunk
                    found.setdefault(fields, Case(name, stage.name, partition, size))
    return list(found.values())


@cache
def build(name: str) -> RadioModel:
    """Return a recipe's student, narrow."""
    student = load(name)[0].student
    fields = {**student.config, **NARROW, "adaptors": []}
    config = RadioConfig(**fields) if student.preset is None else RadioConfig.from_preset(student.preset, **fields)
    torch.manual_seed(0)
    return RadioModel(config).eval()


@pytest.mark.parametrize("name", list_recipes())  # a study does not open without this check
def test_every_window_of_every_stage_could_act(name: str) -> None:
    for stage in load(name):
        check_student_views(stage)


def test_a_run_whose_windows_could_not_act_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = load_recipe("demo_full", ["student.config.vitdet_num_global=4"])
    with pytest.raises(RecipeError, match=r"^`partitions\.low\.vitdet_windows` .*now 4"):
        run_recipe(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_whose_windows_could_not_act_is_neither_run_nor_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data.source=images", "partitions.high.vitdet_windows=[8, 64]"]  # of the last stage
    with pytest.raises(RecipeError, match=r"`partitions\.high\.vitdet_windows` .* got \[64\]"):
        run_recipe(load_recipe("radio_v2.5", overrides), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert plan.main(["--recipe", "radio_v2.5", *overrides]) == 1
    assert "`partitions.high.vitdet_windows`" in capsys.readouterr().err


def test_an_image_larger_than_the_student_takes_is_refused_before_the_run(tmp_path: Path) -> None:
    sizes = "partitions.low.sizes_px=[96, 256]"
    check_student_views(load_recipe("demo", [sizes]))
    online = [sizes, "views.teachers=online", "views.is_square=false"]
    with pytest.raises(RecipeError, match=r"`partitions\.low\.sizes_px` .*256 px"):
        run_recipe(load_recipe("demo", online), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_all_recipes_of_a_vit_but_most_of_the_demo_and_radio1d_have_windows() -> None:
    names = {name for name in list_recipes() if any(p.vitdet_windows for stage in load(name) for p in stage.partitions)}
    others = {
        name
        for name in list_recipes()
        if not name.startswith("demo") and "_1d_" not in name and load(name)[0].student.architecture == "radio"
    }
    assert names == {"demo_full", *others}


@torch.inference_mode()
@pytest.mark.parametrize("is_large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_drawn_windows_change_the_features(is_large: bool) -> None:
    tried = [case for case in cases() if (case.size_px > MAX_FAST_PX) == is_large]
    assert len(tried) > 10
    assert [case for case in tried if not changes_features(case)] == []


def changes_features(case: Case) -> bool:
    model = build(case.recipe)
    patch_size = student_patch_size(load(case.recipe)[0])
    grid = Grid(case.size_px // patch_size, case.size_px // patch_size)
    draws = (draw_window(case.partition, [grid], 0, step) for step in count())
    window = next(window for window in draws if window is not None)
    assert window in fitting_windows(case.partition, grid)
    assert window * patch_size < case.size_px
    image = torch.rand(1, 3, case.size_px, case.size_px, generator=torch.Generator().manual_seed(0))
    whole, windowed = (model(image, window_size=size).features for size in ("global", window))
    return bool((windowed - whole).norm() > 1e-4 * whole.norm())  # a hundred times the rounding of float32
