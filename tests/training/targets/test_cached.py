"""Cached targets against the teacher's features of the student's very pixels."""

import itertools
from collections.abc import Iterator
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
    shifts_of,
)

from modeling_radio.studies.study import open_study
from modeling_radio.training.recipes.recipe import LossRecipe, MesaRecipe, Recipe, RecipeError, ViewsRecipe, load_recipe
from modeling_radio.training.student.build import check_student_views
from modeling_radio.training.targets.cached import CachedTargets
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.plan import BatchPlan, PlannedBatch
from modeling_radio.training.views.shapes import plan_shapes


def source_of(recipe: Recipe, folder: Path) -> CachedTargets:
    return CachedTargets(recipe, PATCH, open_cache(recipe, folder), CPU)


def examples_of(recipe: Recipe, folder: Path, steps: int) -> Iterator[tuple[PlannedBatch, Example]]:
    return source_of(recipe, folder).examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, steps))


def test_windows_are_exact_crops_resized_for_the_student(tmp_path: Path) -> None:
    recipe, sizes = recipe_with(ViewsRecipe(teachers="cached"), windows_px=[80]), set()
    for batch, example in examples_of(recipe, tmp_path, 8):
        ((shape, _),), (pixel_values,) = batch.groups, example.pixel_values
        sizes.add(shape.grid)
        assert pixel_values.shape == (4, 3, *(PATCH * side for side in shape.grid))
        assert example.targets["coarse"].features[0].shape == (4, 3, *shape.window)
        assert example.targets["fine"].features[0].shape == (4, 3, *(2 * side for side in shape.window))
        assert example.targets["fine"].summary is None
        whole = Images().images[list(batch.indices)].float() / 255
        torch.testing.assert_close(example.targets["coarse"].summary, whole.mean((2, 3)), atol=1e-3, rtol=0)
    assert sizes == {(3, 3), (4, 4)}


def test_outermost_patches_of_a_resized_window_are_compared_if_teachers_are_extended(tmp_path: Path) -> None:
    """The student has 4 x 4 patches, the window 3 x 3 of the teacher."""
    recipe = recipe_with(ViewsRecipe(teachers="cached"), sizes_px=[64], windows_px=[48])
    for border in ("masked", "extended"):
        ((_, example),) = examples_of(recipe.replace(loss=LossRecipe(border=border)), tmp_path, 1)
        (own,) = example.targets["coarse"].alignments[0].overlaps.values()
        assert own.valid[0, 1:-1, 1:-1].all()
        assert own.valid.all() == own.valid[0, 0].any() == (border == "extended")


@pytest.mark.parametrize("is_packed", [False, True])
def test_features_are_those_of_the_students_pixels(tmp_path: Path, is_packed: bool) -> None:
    """Also of packed windows of any aspect ratio."""
    partition = {"batch_size": None, "token_budget": 64} if is_packed else {}
    recipe, grids = recipe_with(ViewsRecipe(teachers="cached", is_square=not is_packed), **partition), set()
    for batch, example in examples_of(recipe, tmp_path, 24):
        assert len(batch) == (5 if is_packed else 4)  # 64 patches over 12.5 in the mean
        assert len(example.pixel_values) == len(batch.groups)
        for number, (shape, group) in enumerate(batch.groups):
            grids.add(shape.grid)
            pixel_values = example.pixel_values[number]
            assert pixel_values.shape == (group.stop - group.start, 3, *(PATCH * side for side in shape.grid))
            for name, teacher in TEACHERS.items():
                expected = teacher.extract_features(pixel_values).features
                torch.testing.assert_close(example.targets[name].features[number], expected, atol=1e-3, rtol=0)
    assert {(3, 3), (4, 4), *([(5, 3), (4, 5)] if is_packed else [])} <= grids


@pytest.mark.parametrize("window", [40, 96])
def test_window_that_does_not_fit_is_refused(tmp_path: Path, window: int) -> None:
    with pytest.raises(RecipeError, match=rf"`partitions\.low`.*{window} px"):
        source_of(recipe_with(ViewsRecipe(teachers="cached"), windows_px=[window]), tmp_path)


def test_moving_average_sees_another_crop_that_the_shift_explains(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", flip_probability=0.5, brightness=0.2, contrast=0.2))
    check_the_average_view(source_of(recipe, tmp_path), recipe)


def test_moving_average_of_a_resized_window_is_moved_by_whole_tokens(tmp_path: Path) -> None:
    """The window of 3 patches has 2 tokens, which begin at pixels, not at patches, of the image."""
    recipe = recipe_with(ViewsRecipe(teachers="cached"), sizes_px=[32], windows_px=[48])
    recipe.mesa = MesaRecipe(weight=1.0)
    moved = []
    for _, example in examples_of(recipe, tmp_path, 6):
        views = example.pixel_values[0], example.ema_pixels[0], shifts_of(example.ema_alignments[0]).tolist()
        for own, other, (down, right) in zip(*views, strict=True):
            moved.append(bool(down or right))
            row, col = down * PATCH, right * PATCH
            common = own[:, max(row, 0) : 32 + min(row, 0), max(col, 0) : 32 + min(col, 0)]
            theirs = other[:, max(-row, 0) : 32 + min(-row, 0), max(-col, 0) : 32 + min(-col, 0)]
            inner = (slice(None), slice(2, -2), slice(2, -2))  # the filter reads no further than the window
            torch.testing.assert_close(common[inner], theirs[inner], atol=0.01, rtol=0)
    assert 0 < sum(moved) < len(moved)  # a window in the middle of the 5 patches has no whole token to either side


@pytest.mark.parametrize("name", ["mesa_moving", "all_moving_800", "demo_full"])
def test_every_window_of_our_recipes_leaves_another_for_the_average(name: str) -> None:
    recipe = load_recipe(name) if name == "demo_full" else open_study("regularizers").recipe(name, 0)
    side, (partition,) = recipe.data.image_size_px // 16, recipe.partitions
    plan = plan_shapes(recipe, partition, 16)
    for grid, window in {shape for step in range(50) for shape in plan.step(step).shapes}:
        for corner in itertools.product(*(range(side - length + 1) for length in window)):
            behind = [side - length - at for length, at in zip(window, corner, strict=True)]
            ways = zip((*corner, *behind), (*grid, *grid), (*window, *window), strict=True)
            assert any(patches * tokens // length for patches, tokens, length in ways)


@pytest.mark.parametrize(
    ("windows", "sizes", "least"), [("[128]", "[96]", 176), ("[96, 128]", "[128]", 144), ("[96]", "[64]", 144)]
)
def test_mesa_is_refused_where_the_average_would_see_the_students_window(windows: str, sizes: str, least: int) -> None:
    changes = [f"partitions.low.windows_px={windows}", f"partitions.low.sizes_px={sizes}"]
    check_student_views(load_recipe("demo", changes))
    with pytest.raises(RecipeError, match=rf"^`data\.image_size_px` .*{least}"):
        check_student_views(load_recipe("demo", [*changes, "mesa.weight=0.5"]))
    check_student_views(load_recipe("demo", [*changes, "mesa.weight=0.5", f"data.image_size_px={least}"]))


def test_student_images_need_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", brightness=0.1))
    source = source_of(recipe, tmp_path)
    expected = [example.pixel_values for _, example in examples_of(recipe, tmp_path, 3)]
    monkeypatch.setattr(source.cache, "outputs", lambda indices: pytest.fail("outputs were read"))
    found = source.student_images(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 3))
    for own, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(own, theirs, strict=True))
