"""Shapes of a step's images: drawn, cut by budget, and the same however they are asked for."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from small_recipes import small_recipe

from training.recipe import Recipe, RecipeError
from training.views.plan import (
    IMAGES_PER_DRAW,
    BatchPlan,
    Grid,
    draw_size,
    extreme_grids,
    most_tokens,
    plan_shapes,
    share_out,
)


BUDGET = 6000


def recipe_with(views: dict | None = None, **partition) -> Recipe:
    return small_recipe(views=views or {}, partitions=[{"name": "low", "sizes_px": [64, 128, 256], **partition}])


def packed(**views) -> Recipe:
    return recipe_with(views, token_budget=BUDGET)


def shapes_of(recipe: Recipe, steps: int):
    plan = plan_shapes(recipe, recipe.partitions[0], 16)
    return [plan.step(step) for step in range(steps)]


def test_a_batch_of_one_size_has_one_shape_that_each_step_draws() -> None:
    drawn = [step.shapes for step in shapes_of(recipe_with({"is_square": False}, batch_size=5), 40)]
    assert all(len(set(shapes)) == 1 and len(shapes) == 5 for shapes in drawn)
    assert len({shapes[0].grid for shapes in drawn}) > 8
    assert {shapes[0] for shapes in drawn} == {shape for shapes in drawn for shape in shapes}


def test_a_budget_is_filled_until_the_next_image_does_not_fit() -> None:
    steps = shapes_of(packed(is_square=False), 300)
    for step, following in pairwise(steps):
        tokens = sum(shape.grid.num_tokens for shape in step.shapes)
        assert tokens <= BUDGET < tokens + following.shapes[0].grid.num_tokens
        assert following.first == step.first + len(step.shapes)
    assert steps[-1].first > 3 * IMAGES_PER_DRAW  # several draws were crossed
    means = sum(len(step.shapes) for step in steps) / len(steps)
    assert plan_shapes(packed(is_square=False), packed().partitions[0], 16).images_per_step == pytest.approx(
        means, 0.05
    )


@pytest.mark.parametrize("step", [0, 1, 77, 299])
def test_a_step_is_a_function_of_its_number(step: int) -> None:
    recipe = packed(is_square=False)
    in_order = plan_shapes(recipe, recipe.partitions[0], 16)
    expected = [in_order.step(number) for number in range(300)][step]
    alone = plan_shapes(recipe, recipe.partitions[0], 16)
    assert alone.step(step) == expected == alone.step(step)


def test_sizes_come_with_their_probabilities() -> None:
    recipe = recipe_with(token_budget=BUDGET, probabilities=[0.7, 0.2, 0.1])
    sides = [shape.grid.rows for step in shapes_of(recipe, 100) for shape in step.shapes]
    shares = [sides.count(side) / len(sides) for side in (4, 8, 16)]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_an_image_that_is_not_square_has_as_many_patches() -> None:
    recipe = packed(is_square=False, crop_aspect=(0.5, 2.0))
    grids = {shape.grid for step in shapes_of(recipe, 100) for shape in step.shapes}
    for size in (64, 128, 256):
        cells = size // 16
        own = [grid for grid in grids if abs(grid.num_tokens**0.5 - cells) < 1]
        assert min(grid.cols / grid.rows for grid in own) < 0.65
        assert max(grid.cols / grid.rows for grid in own) > 1.6
        assert all(0.75 <= grid.num_tokens / cells**2 <= 1.25 for grid in own)
        assert all(grid.num_tokens <= most_tokens(recipe, size, 16) for grid in own)
    assert {grid.rows == grid.cols for grid in grids} == {True, False}


def test_extreme_grids_bound_all_others() -> None:
    recipe = packed(is_square=False, crop_aspect=(0.5, 2.0))
    assert extreme_grids(recipe, recipe.partitions[0], 128, 16) == [Grid(8, 8), Grid(11, 6), Grid(6, 11)]
    assert extreme_grids(packed(), packed().partitions[0], 128, 16) == [Grid(8, 8)]
    assert most_tokens(packed(), 128, 16) == 64
    assert most_tokens(packed(is_square=False, crop_aspect=(0.01, 100.0)), 16, 16) >= 10  # 10 x 1


@pytest.mark.parametrize("windows_px", [None, [96, 128]])
def test_cached_windows_lie_within_their_images(windows_px: list[int] | None) -> None:
    recipe = recipe_with({"teachers": "cached", "is_square": False}, token_budget=BUDGET, windows_px=windows_px)
    recipe.data.image_size_px = 128
    if windows_px is None:
        recipe.partitions[0].sizes_px = [96, 128]
    shapes = {shape for step in shapes_of(recipe, 100) for shape in step.shapes}
    assert max(max(shape.window) for shape in shapes) == 8
    assert {min(shape.window) for shape in shapes} == {5, 6, 7, 8}
    assert all(shape.grid == shape.window for shape in shapes) == (windows_px is None)


def test_what_is_resized_to_a_grid_has_its_aspect_ratio() -> None:
    """Cached images bound their windows: then the grid is as square as the window, up to rounding."""
    recipe = recipe_with({"teachers": "cached", "is_square": False}, token_budget=BUDGET, windows_px=[128])
    recipe.data.image_size_px = 128
    shapes = {shape for step in shapes_of(recipe, 100) for shape in step.shapes if shape.grid.num_tokens > 200}
    for grid, window in shapes:
        assert 0.9 < (grid.cols / grid.rows) / (window.cols / window.rows) < 1.1


def test_extreme_grids_are_those_of_the_windows() -> None:
    """As the full demo has them: windows of 6 cells may be 7 x 5, those of 8, as large as the image, 8 x 7."""
    recipe = recipe_with({"teachers": "cached", "is_square": False}, sizes_px=[192], windows_px=[96, 128])
    recipe.data.image_size_px = 128
    partition = recipe.partitions[0]
    assert set(extreme_grids(recipe, partition, 192, 16)) == {(12, 12), (14, 10), (10, 14), (13, 11), (11, 13)}


def test_parts_get_about_equally_many_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(16, 300, (90,), generator=generator).tolist()
    parts = share_out(tokens, 8)
    assert sorted(row for part in parts for row in part) == list(range(90))
    filled = [sum(tokens[row] for row in part) for part in parts]
    assert max(filled) - min(filled) < 60
    assert share_out([5] * 7, 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert sorted(map(len, share_out([9, 1, 1], 3))) == [1, 1, 1]


@pytest.mark.parametrize(("num_ranks", "accumulation_steps"), [(1, 3), (2, 1), (2, 4)])
def test_packed_images_and_their_numbers_do_not_depend_on_the_split(num_ranks: int, accumulation_steps: int) -> None:
    def seen(recipe: Recipe, num_ranks: int) -> dict:
        plans = [BatchPlan(recipe, 50, rank, num_ranks, patch_size=16) for rank in range(num_ranks)]
        return {
            row: (index, shape, numbers.tolist(), batch.vitdet_window)
            for plan in plans
            for batch in plan.step(6)
            for row, index, shape, numbers in zip(
                batch.rows, batch.indices, batch.shapes, batch.uniform("a", 2), strict=True
            )
        }

    views = {"is_square": False}
    partition = {"token_budget": 6000, "vitdet_windows": [2, 3], "vitdet_ragged": True}
    whole = seen(recipe_with(views, **partition), 1)
    assert len(whole) > 20
    assert seen(recipe_with(views, accumulation_steps=accumulation_steps, **partition), num_ranks) == whole


def test_every_packed_image_weighs_the_same() -> None:
    recipe = recipe_with({"is_square": False}, token_budget=6000, accumulation_steps=2)
    batches = [batch for rank in range(2) for batch in BatchPlan(recipe, 50, rank, 2, patch_size=16).step(3)]
    weights = {batch.weight / len(batch) / 2 for batch in batches}
    num_images = sum(map(len, batches))
    assert max(weights) == pytest.approx(1 / num_images)
    assert min(weights) == pytest.approx(1 / num_images)
    assert all(list(batch.shapes) == sorted(batch.shapes) for batch in batches)


def test_a_budget_too_small_for_its_parts_is_refused() -> None:
    recipe = recipe_with(token_budget=1000, accumulation_steps=2)
    message = r"`partitions.low.token_budget` must be at least 1024, .* up to 256 tokens .*2 ranks x 2 acc.*, got 1000"
    with pytest.raises(RecipeError, match=message):
        BatchPlan(recipe, 20, num_ranks=2, patch_size=16)
    BatchPlan(recipe, 20, patch_size=16)


@pytest.mark.parametrize(
    "partition", [{"batch_size": 3, "token_budget": 100}, {"batch_size": None}], ids=["both", "none"]
)
def test_a_partition_has_a_batch_size_or_a_budget(partition: dict) -> None:
    with pytest.raises(RecipeError, match=r"`partitions.low.batch_size` must be .*null"):
        recipe_with(**partition)
    assert recipe_with(token_budget=100).partitions[0].batch_size is None
    assert recipe_with().partitions[0].batch_size == 64
    again = recipe_with(token_budget=100).to_dict()
    assert Recipe(**again).partitions[0].token_budget == 100


def test_sizes_follow_their_probabilities() -> None:
    sizes = Counter(draw_size([32, 48, 64], [1, 0, 3], 0, "size", step) for step in range(400))
    assert sizes[48] == 0
    assert 0.65 < sizes[64] / 400 < 0.85
    equal = Counter(draw_size([32, 64], None, 0, "size", step) for step in range(400))
    assert 0.4 < equal[32] / 400 < 0.6


def test_aspect_ratios_come_in_steps() -> None:
    """Five sizes of 16 px patches: as many shapes for each, and none beyond what the extremes say."""
    recipe = recipe_with({"is_square": False, "aspect_steps": 3}, token_budget=BUDGET)
    grids = {shape.grid for step in shapes_of(recipe, 20) for shape in step.shapes}
    assert grids == {Grid(4, 4), Grid(9, 7), Grid(8, 8), Grid(7, 9), Grid(18, 15), Grid(16, 16), Grid(15, 18)}
    extremes = {size: extreme_grids(recipe, recipe.partitions[0], size, 16) for size in (64, 128, 256)}
    assert grids == {grid for of_size in extremes.values() for grid in of_size}
