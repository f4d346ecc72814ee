"""Cached targets against what the teacher says of the student's very pixels."""

import itertools
from pathlib import Path

import pytest
import torch
from mean_colors import (
    CPU,
    NUM_IMAGES,
    PATCH,
    TEACHERS,
    Images,
    check_the_average_view,
    open_cache,
    recipe_with,
)

from training.recipe import MesaRecipe, Recipe, RecipeError, ViewsRecipe, load_recipe
from training.student.build import check_student_views
from training.studies.study import open_study
from training.targets.cached import CachedTargets
from training.views.plan import BatchPlan, plan_shapes


@pytest.mark.parametrize("windows_px", [None, [80]])
def test_cached_targets_are_exact_crops(tmp_path: Path, windows_px: list[int] | None) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"), windows_px=windows_px)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)
    sizes = set()
    for batch, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 8)):
        ((shape, _),) = batch.groups
        sizes.add(shape.grid)
        (pixel_values,) = example.pixel_values
        assert pixel_values.shape == (4, 3, *(PATCH * side for side in shape.grid))
        (coarse,), (fine,) = (example.targets[name].features for name in ("coarse", "fine"))
        assert coarse.shape == (4, 3, *shape.window)
        assert fine.shape == (4, 3, *(2 * side for side in shape.window))
        if windows_px is None:
            for name, teacher in TEACHERS.items():
                expected = teacher.answer(pixel_values).features
                torch.testing.assert_close(example.targets[name].features[0], expected, atol=1e-3, rtol=0)
        assert example.targets["fine"].summary is None
        whole = Images().images[list(batch.indices)].float() / 255
        torch.testing.assert_close(example.targets["coarse"].summary, whole.mean((2, 3)), atol=1e-3, rtol=0)
    assert sizes == {(3, 3), (4, 4)}


def test_packed_windows_of_any_aspect_ratio_are_exact_crops(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", is_square=False), batch_size=None, token_budget=64)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)
    grids = set()
    for batch, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 8)):
        assert 48 <= sum(shape.grid.num_tokens for shape in batch.shapes) <= 64
        assert len(example.pixel_values) == len(batch.groups) > 1
        for number, (shape, group) in enumerate(batch.groups):
            grids.add(shape.grid)
            pixel_values = example.pixel_values[number]
            assert pixel_values.shape == (group.stop - group.start, 3, *(PATCH * side for side in shape.grid))
            for name, teacher in TEACHERS.items():
                expected = teacher.answer(pixel_values).features
                torch.testing.assert_close(example.targets[name].features[number], expected, atol=1e-3, rtol=0)
    assert {(3, 3), (4, 4), (5, 3), (4, 5)} <= grids


@pytest.mark.parametrize("window", [40, 96])
def test_window_that_does_not_fit_is_refused(tmp_path: Path, window: int) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"), windows_px=[window])
    with pytest.raises(RecipeError, match=f"windows that are multiples of the patch .*, got {window} px"):
        CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)


def test_moving_average_sees_another_crop_that_the_shift_explains(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", flip_probability=0.5, brightness=0.2, contrast=0.2))
    check_the_average_view(CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU), recipe)


def test_moving_average_of_a_resized_window_is_moved_by_whole_tokens(tmp_path: Path) -> None:
    """The window of 3 cells has 2 tokens, which begin at pixels, not at cells, of the image."""
    recipe = recipe_with(ViewsRecipe(teachers="cached"), sizes_px=[32], windows_px=[48])
    recipe.mesa = MesaRecipe(weight=1.0)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)
    seen = [
        (own, other, shift)
        for _, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 6))
        for own, other, shift in zip(
            example.pixel_values[0], example.average.pixel_values[0], example.average.shifts[0], strict=True
        )
    ]
    # A window in the middle of the image of 5 cells has no whole token to either side.
    assert 0 < sum(bool(shift.any()) for *_, shift in seen) < len(seen)
    for own, other, (row, col) in seen:
        row, col = int(row) * PATCH, int(col) * PATCH
        common = own[:, max(row, 0) : 32 + min(row, 0), max(col, 0) : 32 + min(col, 0)]
        theirs = other[:, max(-row, 0) : 32 + min(-row, 0), max(-col, 0) : 32 + min(-col, 0)]
        inner = (slice(None), slice(2, -2), slice(2, -2))  # the filter reads no further than the window
        torch.testing.assert_close(common[inner], theirs[inner], atol=0.01, rtol=0)


@pytest.mark.parametrize("arm", ["mesa_moving", "all_moving_800"])
def test_windows_of_our_study_of_mesa_always_leave_another(arm: str) -> None:
    assert_others(open_study("regularizers").recipe(arm, 0))


def test_windows_of_the_full_demo_always_leave_another() -> None:
    assert_others(load_recipe("demo_full"))


def assert_others(recipe: Recipe) -> None:
    """Look at every place of every window that a run has."""
    num_cells, (partition,) = recipe.data.image_size_px // 16, recipe.partitions
    plan = plan_shapes(recipe, partition, 16)
    for grid, window in {shape for step in range(50) for shape in plan.step(step).shapes}:
        for place in itertools.product(*(range(num_cells - side + 1) for side in window)):
            behind = [num_cells - side - at for side, at in zip(window, place, strict=True)]
            ways = zip((*place, *behind), (*grid, *grid), (*window, *window), strict=True)
            assert any(cells * tokens // side for cells, tokens, side in ways)


@pytest.mark.parametrize(
    ("windows", "sizes", "least"), [("[128]", "[96]", 176), ("[96, 128]", "[128]", 144), ("[96]", "[64]", 144)]
)
def test_mesa_is_refused_where_the_average_would_see_the_students_window(windows: str, sizes: str, least: int) -> None:
    changes = [f"partitions.low.windows_px={windows}", f"partitions.low.sizes_px={sizes}"]
    check_student_views(load_recipe("demo", changes))
    recipe = load_recipe("demo", [*changes, "mesa.weight=0.5"])
    with pytest.raises(RecipeError, match=rf"^`data.image_size_px` must be at least {least} .*, got 128"):
        check_student_views(recipe)
    check_student_views(load_recipe("demo", [*changes, "mesa.weight=0.5", f"data.image_size_px={least}"]))


def test_what_the_student_sees_can_be_had_without_the_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", brightness=0.1))
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)

    def plan():
        return BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 3)

    expected = [example.pixel_values for _, example in source.examples(plan)]
    monkeypatch.setattr(source.cache, "answers", lambda indices: pytest.fail("answers were read"))
    for own, theirs in zip(source.student_images(plan), expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(own, theirs, strict=True))
