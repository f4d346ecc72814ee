"""Cached targets against what the teacher says of the student's very pixels."""

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
    mesa_of,
    open_cache,
    recipe_with,
)

from training.recipe import MesaRecipe, RecipeError, ViewsRecipe
from training.targets.cached import CachedTargets
from training.views.batches import BatchPlan


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
    recipe = recipe_with(ViewsRecipe(teachers="cached"), sizes_px=[32], windows_px=[64])
    recipe.mesa = MesaRecipe(weight=1.0)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)
    # Windows of 4 cells lie at offsets 0 and 1, and 2 cells make a token: no whole token lies between them.
    assert mesa_of(source, recipe) == [0.0] * 6


def test_what_the_student_sees_can_be_had_without_the_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", brightness=0.1))
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), CPU)

    def plan():
        return BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 3)

    expected = [example.pixel_values for _, example in source.examples(plan)]
    monkeypatch.setattr(source.cache, "answers", lambda indices: pytest.fail("answers were read"))
    for own, theirs in zip(source.student_images(plan), expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(own, theirs, strict=True))
