"""Batches, shapes and windows: the same for any split over ranks and parts, and functions of the step alone."""

import itertools
from collections import Counter

import pytest
import torch
from small_recipes import small_recipe

from modeling_radio import RadioConfig
from modeling_radio.core.seeds import make_generator
from modeling_radio.data.image_table import Images
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError, load_recipe, stage_recipes
from modeling_radio.training.views import plan
from modeling_radio.training.views.dealing import (
    cut_by_shape,
    cut_evenly,
    deal_teachers,
    divide_ranks,
    share_by_shape,
    teachers_of_rank,
)
from modeling_radio.training.views.plan import BatchPlan, PlannedBatch, large_enough_images
from modeling_radio.training.views.shapes import (
    Grid,
    ImageShape,
    StepShapes,
    draw_size,
    extreme_grids,
    most_tokens,
    plan_shapes,
    smallest_used_px,
)
from modeling_radio.training.views.windows import check_windows, draw_window, fitting_windows


BUDGET = 6000


def recipe_with(views: dict | None = None, **partition) -> Recipe:
    partition = {"name": "low", "sizes_px": [32, 64], "batch_size": 8, **partition}
    return small_recipe(views=views or {}, partitions=[partition])


def packed(views: dict | None = None, **partition) -> Recipe:
    return recipe_with(views, **{"sizes_px": [64, 128, 256], "batch_size": None, "token_budget": BUDGET, **partition})


def partitions_with(**shares: int | None) -> Recipe:
    recipe = recipe_with()
    recipe.partitions = [PartitionRecipe(name=name, batch_size=7, rank_share=share) for name, share in shares.items()]
    return recipe


def step_of(recipe: Recipe, step: int, num_ranks: int = 1, num_images: int | None = 20) -> list[PlannedBatch]:
    """The batches of a step on all ranks."""
    plans = [BatchPlan(recipe, num_images, rank, num_ranks, patch_size=16) for rank in range(num_ranks)]
    return [batch for plan in plans for batch in plan.step(step)]


def shapes_of(recipe: Recipe, steps: int) -> list[StepShapes]:
    plan = plan_shapes(recipe, recipe.partitions[0], 16)
    return [plan.step(step) for step in range(steps)]


@pytest.mark.parametrize(("num_ranks", "accumulation_steps"), [(1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize("kind", ["uniform", "packed"])
def test_images_and_their_numbers_do_not_depend_on_the_split(kind: str, num_ranks: int, accumulation_steps: int):
    def rows(batches: list[PlannedBatch]) -> dict:
        return {
            row: (index, shape, numbers.tolist(), batch.vitdet_window)
            for batch in batches
            for row, index, shape, numbers in zip(
                batch.rows,
                batch.indices,
                batch.shapes,
                torch.cat([batch.uniform("a", 2), batch.normal("b", 1)], 1),
                strict=True,
            )
        }

    windows = {"vitdet_windows": [2, 3], "vitdet_ragged": True}
    build = recipe_with if kind == "uniform" else packed
    whole = rows(step_of(build({"is_square": False}, **windows), 6))
    parts = step_of(build({"is_square": False}, **windows, accumulation_steps=accumulation_steps), 6, num_ranks)
    assert len(whole) == 8 if kind == "uniform" else len(whole) > 20
    assert len(parts) == num_ranks * accumulation_steps
    assert rows(parts) == whole
    weights = [batch.weight / len(batch) / num_ranks for batch in parts]
    assert weights == pytest.approx([1 / len(whole)] * len(parts))
    assert all(list(batch.shapes) == sorted(batch.shapes) for batch in parts)
    assert all(batch.groups[-1][1].stop == len(batch) for batch in parts)


@pytest.mark.parametrize(("num_ranks", "accumulation_steps"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["uniform", "packed"])
@pytest.mark.parametrize("number", [1, 2])
def test_images_are_dealt_evenly_to_teachers_whatever_the_split(
    kind: str, num_ranks: int, accumulation_steps: int, number: int
) -> None:
    (partition,) = (recipe_with if kind == "uniform" else packed)().partitions
    partition = partition.replace(teachers_per_image=number)
    recipe = small_recipe("a", "b", "c", partitions=[partition])

    def rows(batches: list[PlannedBatch]) -> dict[str, list[int]]:
        return {name: sorted(b.rows[place] for b in batches for place in b.seen[name].places) for name in "abc"}

    split = recipe.replace(partitions=[partition.replace(accumulation_steps=accumulation_steps)])
    turns = set()
    for step in range(9):
        whole, parts = step_of(recipe, step), step_of(split, step, num_ranks)
        seen, num_images = rows(whole), whole[0].num_images
        assert rows(parts) == seen
        assert Counter(row for own in seen.values() for row in own) == dict.fromkeys(range(num_images), number)
        assert max(map(len, seen.values())) - min(map(len, seen.values())) <= 1
        assert all(batch.seen[name].share == pytest.approx(number / 3) for batch in parts for name in "abc")
        turns.add(tuple(seen["a"]))
    assert len(turns) > 1


@pytest.mark.parametrize("num_teachers", range(2, 6))
def test_each_image_weighs_the_same_over_all_turns(num_teachers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mean over the turns that steps draw, each teacher's loss counts each image with 1 / number of images."""
    names = [f"t{number}" for number in range(num_teachers)]
    for num_images, number in itertools.product(range(1, 65), range(1, num_teachers)):
        shapes = [ImageShape(Grid(1 + row, 1), Grid(1 + row, 1)) for row in range(num_images)]
        partition = PartitionRecipe(name="low", sizes_px=[32], batch_size=9, teachers_per_image=number)
        weights = torch.zeros(num_teachers, num_teachers, num_images)
        for turn in range(num_teachers):
            monkeypatch.setattr(torch, "randint", lambda *_, turn=turn, **__: torch.tensor(turn))
            seen = plan._seen_in(range(num_images), deal_teachers(partition, names, shapes, 0, 0), num_images)
            for row, name in enumerate(names):
                weights[turn, row, list(seen[name].places)] = 1 / num_images / seen[name].share
        torch.testing.assert_close(weights.mean(0), torch.full_like(weights[0], 1 / num_images))


def test_steps_are_functions_of_their_number() -> None:
    plan = BatchPlan(recipe_with(), 20, patch_size=16)
    in_order = list(plan.steps(0, 10))
    assert BatchPlan(recipe_with(), 20, patch_size=16).step(5) == [in_order[5]]
    assert not torch.equal(in_order[0].uniform("a"), in_order[0].uniform("b"))
    assert not torch.equal(in_order[0].uniform("a"), in_order[1].uniform("a"))
    indices = [index for batch in in_order for index in batch.indices]
    epochs = [indices[start : start + 20] for start in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    (small,) = step_of(recipe_with(), 0, num_images=3)  # a batch larger than the data set
    assert sorted(Counter(small.indices).values()) == [2, 3, 3]
    streamed = [index for batch in BatchPlan(recipe_with(), None, patch_size=16).steps(0, 2) for index in batch.indices]
    assert streamed == list(range(16))


def test_all_partitions_take_part_in_a_step_with_their_teachers_and_weights() -> None:
    partitions = [
        {"name": "low", "sizes_px": [32, 64], "batch_size": 8, "accumulation_steps": 4, "weight": 0.25},
        {"name": "high", "sizes_px": [128], "batch_size": 2, "teachers": ["b"]},
    ]
    plan = BatchPlan(small_recipe("a", "b", partitions=partitions), 20, patch_size=16)
    *low, high = plan.step(0)
    assert [(batch.partition, len(batch), batch.teachers) for batch in low] == [("low", 2, ("a", "b"))] * 4
    assert (sum(batch.weight for batch in low), high.weight) == (0.25, 1)
    assert (high.partition, len(high), high.teachers) == ("high", 2, ("b",))
    assert (plan.images_per_step, plan.batches_per_step) == (10, 5)


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 6])
def test_every_image_weighs_the_same_wherever_it_runs(num_ranks: int) -> None:
    """Averaged over ranks, each image must have one over its partition's batch, as if all ran in one place."""
    recipe = partitions_with(low=1, high=1, all=None)
    recipe.partitions[1].accumulation_steps = 2
    batches = step_of(recipe, 4, num_ranks)
    seen = {(each.partition, row): each.weight / len(each) / num_ranks for each in batches for row in each.rows}
    assert seen.keys() == {(name, row) for name in ("low", "high", "all") for row in range(7)}
    assert all(weight == pytest.approx(1 / 7) for weight in seen.values())


def test_partitions_with_a_share_divide_the_ranks_and_their_teachers() -> None:
    partitions = partitions_with(low=3, all=None, high=1).partitions
    assert divide_ranks(partitions, 8) == {"low": range(6), "all": range(8), "high": range(6, 8)}
    assert divide_ranks(partitions, 1) == {"low": range(1), "all": range(1), "high": range(1)}
    assert divide_ranks(partitions_with(low=None, high=None).partitions, 3) == {"low": range(3), "high": range(3)}
    low = {"name": "low", "teachers": ["c", "a"], "rank_share": 1}
    recipe = small_recipe("a", "b", "c", partitions=[low, {"name": "high", "teachers": ["b"], "rank_share": 1}])
    assert [teachers_of_rank(recipe, rank, 4) for rank in range(4)] == [["a", "c"], ["a", "c"], ["b"], ["b"]]
    assert teachers_of_rank(recipe, 0, 1) == ["a", "b", "c"]
    cached = recipe.replace(views={"teachers": "cached"})  # each rank fills its share of the cache
    assert teachers_of_rank(cached, 3, 4) == ["a", "b", "c"]


def test_plans_that_cannot_run_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"low\.token_budget`"):
        BatchPlan(packed(token_budget=255), 20, patch_size=16)
    with pytest.raises(RecipeError, match=r"`rank_share` .*Use 8 ranks"):
        BatchPlan(partitions_with(low=3, high=1), 20, num_ranks=6, patch_size=16)
    recipe = partitions_with(low=1, high=1)
    BatchPlan(recipe, 20, num_ranks=2, patch_size=16).check_equal_passes()
    recipe.partitions[1].accumulation_steps = 3
    BatchPlan(recipe, 20, patch_size=16).check_equal_passes()
    with pytest.raises(RecipeError, match="`accumulation_steps`"):
        BatchPlan(recipe, 20, num_ranks=2, patch_size=16).check_equal_passes()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("teachers", {"teachers": ["s"]}),
        ("teachers", {"teachers": []}),
        ("teachers", {"teachers": ["a"]}),
        ("rank_share", {"rank_share": 0}),
        ("batch_size", {"batch_size": 3, "token_budget": 100}),
        ("batch_size", {"batch_size": None}),
    ],
)
def test_bad_partitions_are_refused(field: str, wrong: dict) -> None:
    with pytest.raises(RecipeError, match=f"`partitions(.low.| .){field}"):
        small_recipe("a", "sam", partitions=[{"name": "low", **wrong}])


class Sized(Images):
    def __init__(self, *sides: int) -> None:
        self.sides = torch.tensor(sides)

    def __len__(self) -> int:
        return len(self.sides)

    def short_sides(self) -> torch.Tensor:
        return self.sides


IMAGES = Sized(40, 300, 64, 100, 31, 128)


def filtered(ratio: float | None, teachers: str = "online") -> Recipe:
    low, high = ({"name": "low", "sizes_px": [16, 32], "batch_size": 4}, {"name": "high", "sizes_px": [96]})
    data = {"source": "s", "image_size_px": 64, "min_side_ratio": ratio}
    return small_recipe(data=data, views={"teachers": teachers}, partitions=[low, {**high, "batch_size": 3}])


@pytest.mark.parametrize(
    ("ratio", "teachers", "expected"),
    [
        (1, "online", {"low": [0, 1, 2, 3, 5], "high": [1, 3, 5]}),
        (0.9, "online", {"high": [1, 3, 5]}),  # all images are large enough for the other partition
        (None, "online", {}),
        (1, "cached", {"low": [1, 2, 3, 5], "high": [1, 2, 3, 5]}),
    ],
)
def test_partitions_see_what_is_large_enough_for_their_largest_size(ratio, teachers: str, expected: dict) -> None:
    recipe = filtered(ratio, teachers)
    assert {name: numbers.tolist() for name, numbers in large_enough_images(IMAGES, recipe).items()} == expected
    assert smallest_used_px(recipe) == (64 if teachers == "cached" else 32)
    with pytest.raises(RecipeError, match=r"`data.min_side_ratio` .*'high'"):
        large_enough_images(IMAGES, filtered(4))


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_plans_walk_through_what_is_admitted(num_ranks: int) -> None:
    recipe = filtered(1)
    image_numbers = large_enough_images(IMAGES, recipe)
    plans = [
        BatchPlan(recipe, 6, rank, num_ranks, patch_size=16, image_numbers=image_numbers) for rank in range(num_ranks)
    ]
    batches = [batch for plan in plans for batch in plan.steps(0, 10)]
    for name, numbers in image_numbers.items():
        seen = Counter(index for batch in batches if batch.partition == name for index in batch.indices)
        assert seen.keys() == set(numbers.tolist())
        assert max(seen.values()) - min(seen.values()) <= 1
    everything = {"low": torch.arange(6), "high": torch.arange(6)}
    same = BatchPlan(recipe, 6, patch_size=16, image_numbers=everything)
    assert list(same.steps(0, 9)) == list(BatchPlan(recipe, 6, patch_size=16).steps(0, 9))


def test_a_batch_of_one_size_has_one_shape_that_each_step_draws() -> None:
    drawn = [step.shapes for step in shapes_of(recipe_with({"is_square": False}, sizes_px=[64, 128, 256]), 40)]
    assert all(len(set(shapes)) == 1 and len(shapes) == 8 for shapes in drawn)
    assert len({shapes[0].grid for shapes in drawn}) > 8


def test_a_budget_is_filled_with_each_size_by_its_share() -> None:
    """4, 16 and 64 patches: 6,000 hold as many images of 29.6 in the mean as of 6,000 / 29.6."""
    recipe = packed({"is_square": False, "crop_aspect": (0.9, 1.1)}, probabilities=[0.2, 0.5, 0.3])
    steps = shapes_of(recipe, 40)
    number = plan_shapes(recipe, recipe.partitions[0], 16).images_per_step
    assert number == int(BUDGET / (0.2 * 16 + 0.5 * 64 + 0.3 * 256))
    for position, step in enumerate(steps):
        assert (step.first, len(step.shapes)) == (position * number, number)
        tokens = [shape.grid.num_tokens for shape in step.shapes]
        assert BUDGET - 2 * 256 < sum(tokens) < BUDGET + 256
        sides = [round(count**0.5 / 4) for count in tokens]
        assert all(abs(sides.count(side) - share * number) < 1 for side, share in ((1, 0.2), (2, 0.5), (4, 0.3)))
    assert len({step.shapes for step in steps}) == 40


def test_a_budget_of_few_images_draws_sizes_in_the_mean_by_their_shares() -> None:
    recipe = packed(sizes_px=[16, 32], probabilities=[3, 1], token_budget=4)
    drawn = [shape.grid.rows for step in shapes_of(recipe, 400) for shape in step.shapes]
    assert len(drawn) == 800
    assert drawn.count(1) / 800 == pytest.approx(0.75, abs=0.03)


def test_a_step_far_into_a_run_takes_as_long_as_the_first() -> None:
    """A plan that went through the steps before would take hours."""
    plan = BatchPlan(packed(accumulation_steps=2), 20, patch_size=16)
    number = plan.images_per_step
    indices = [index for batch in plan.step(10**9) for index in batch.indices]
    assert len(indices) == number
    assert plan.step(3) == BatchPlan(packed(accumulation_steps=2), 20, patch_size=16).step(3)


def test_each_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a step whose images are of two epochs, which it walks through by size."""
    drawn = []
    monkeypatch.setattr(plan, "make_generator", lambda *labels: drawn.append(labels) or make_generator(*labels))
    recipe = packed(accumulation_steps=2)
    batches = BatchPlan(recipe, 200, patch_size=16)
    steps = [batches.step(step) for step in range(20)]
    last = max(20 * batches.images_per_step - 1, 0) // 200
    assert sorted(epoch for _, label, _, epoch in drawn if label == "epoch") == list(range(last + 1))
    assert last > 2
    assert steps[7] == BatchPlan(recipe, 200, patch_size=16).step(7)


def test_an_image_that_is_not_square_has_as_many_patches() -> None:
    recipe = packed({"is_square": False, "crop_aspect": (0.5, 2.0)})
    grids = {shape.grid for step in shapes_of(recipe, 100) for shape in step.shapes}
    for size in (64, 128, 256):
        cells = size // 16
        own = [grid for grid in grids if abs(grid.num_tokens**0.5 - cells) < 1]
        assert min(grid.cols / grid.rows for grid in own) < 0.65
        assert max(grid.cols / grid.rows for grid in own) > 1.6
        assert all(0.75 <= grid.num_tokens / cells**2 <= 1.25 for grid in own)
        assert all(grid.num_tokens <= most_tokens(recipe, size, 16) for grid in own)
    assert extreme_grids(recipe, recipe.partitions[0], 128, 16) == [Grid(8, 8), Grid(11, 6), Grid(6, 11)]
    assert extreme_grids(packed(), packed().partitions[0], 128, 16) == [Grid(8, 8)]
    assert most_tokens(packed(), 128, 16) == 64
    assert most_tokens(packed({"is_square": False, "crop_aspect": (0.01, 100.0)}), 16, 16) >= 10  # 10 x 1


def test_aspect_ratios_come_in_steps() -> None:
    """Three sizes of 16 px patches: as many shapes for each, and none beyond the extreme ones."""
    recipe = packed({"is_square": False, "aspect_steps": 3})
    grids = {shape.grid for step in shapes_of(recipe, 20) for shape in step.shapes}
    assert grids == {(4, 4), (9, 7), (8, 8), (7, 9), (18, 15), (16, 16), (15, 18)}
    assert grids == {grid for size in (64, 128, 256) for grid in extreme_grids(recipe, recipe.partitions[0], size, 16)}


@pytest.mark.parametrize("windows_px", [None, [96, 128]])
def test_cached_windows_lie_within_their_images(windows_px: list[int] | None) -> None:
    recipe = packed({"teachers": "cached", "is_square": False}, windows_px=windows_px)
    recipe.data.image_size_px = 128
    if windows_px is None:
        recipe.partitions[0].sizes_px = [96, 128]
    shapes = {shape for step in shapes_of(recipe, 100) for shape in step.shapes}
    assert max(max(shape.window) for shape in shapes) == 8
    assert {min(shape.window) for shape in shapes} == {5, 6, 7, 8}
    assert all(shape.grid == shape.window for shape in shapes) == (windows_px is None)
    for grid, window in shapes:
        if grid.num_tokens > 200:  # as square as the window, up to rounding
            assert 0.9 < (grid.cols / grid.rows) / (window.cols / window.rows) < 1.1


def test_extreme_grids_are_those_of_the_windows() -> None:
    """As the full demo has them: windows of 6 patches may be 7 x 5, those of 8, as large as the image, 8 x 7."""
    recipe = recipe_with({"teachers": "cached", "is_square": False}, sizes_px=[192], windows_px=[96, 128])
    recipe.data.image_size_px = 128
    grids = extreme_grids(recipe, recipe.partitions[0], 192, 16)
    assert set(grids) == {(12, 12), (14, 10), (10, 14), (13, 11), (11, 13)}


def shapes_of_sides(sides: list[int]) -> list[ImageShape]:
    return [ImageShape(Grid(side, side), Grid(side, side)) for side in sides]


def test_parts_of_a_pack_cost_the_same_and_have_few_shapes() -> None:
    sides = torch.randint(4, 16, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    costs, shapes = [side**2 for side in sides], shapes_of_sides(sides)
    loads = [0, 0, 1500, 0, 300]
    parts = share_by_shape(costs, shapes, loads)
    assert sorted(row for part in parts for row in part) == list(range(200))
    filled = [load + sum(costs[row] for row in part) for load, part in zip(loads, parts, strict=True)]
    assert max(filled) - min(filled) < min(costs) + 1
    assert sum(len({sides[row] for row in part}) for part in parts) < 2 * len(set(sides))
    assert share_by_shape([9, 4, 2], shapes_of_sides([3, 2, 1]), [5, 0]) == [[1, 2], [0]]
    assert share_by_shape([4, 4], shapes_of_sides([2, 2]), [9, 0, 1]) == [[], [0], [1]]
    assert share_by_shape([1] * 9, shapes_of_sides([1] * 9), [9, 0, 0])[0] == []
    assert [list(part) for part in cut_evenly(7, 3)] == [[0, 1], [2, 3], [4, 5, 6]]


def test_runs_of_shapes_are_as_cheap_as_can_be() -> None:
    sides = [4, 4, 3, 3, 3, 2, 1]
    runs = cut_by_shape([side**2 for side in sides], shapes_of_sides(sides), 3)
    assert [[sides[row] for row in run] for run in runs] == [[4], [4, 3], [3, 3, 2, 1]]  # 16, 25 and 23 patches
    assert cut_by_shape([4, 4], shapes_of_sides([2, 2]), 3) == [[0], [1], []]


@pytest.mark.parametrize(("num_ranks", "worst", "most_shapes"), [(8, 1.01, 10), (64, 1.03, 4)])
def test_ranks_of_a_large_recipe_have_few_shapes_and_equal_work(
    num_ranks: int, worst: float, most_shapes: float
) -> None:
    parts = [f"partitions.{name}.accumulation_steps=2" for name in ("low", "high")]
    recipe = stage_recipes(load_recipe("radio_s", ["data.source=images", *parts]))[-1]
    ranks = BatchPlan(recipe, None, 0, num_ranks, patch_size=16).shapes_of_ranks(0)
    grids = [[grid for parts in own.values() for part in parts for grid in part] for own in ranks]
    costs = [sum(grid.num_tokens for grid in own) for own in grids]
    assert max(costs) < worst * sum(costs) / num_ranks
    assert sum(len(set(own)) for own in grids) <= most_shapes * num_ranks


def two_packs(**low) -> Recipe:
    """Six images of 64 px and two of 256 px a step in the mean: 16 and 256 patches."""
    partitions = [
        {"name": "low", "sizes_px": [64], "token_budget": 6 * 16, **low},
        {"name": "high", "sizes_px": [256], "token_budget": 2 * 256},
    ]
    return small_recipe(partitions=partitions)


def rows_of(recipe: Recipe, step: int, num_ranks: int, operations: dict | None = None) -> list[dict[str, int]]:
    """By rank how many images of each partition count."""
    plans = [
        BatchPlan(recipe, None, rank, num_ranks, patch_size=16, operations=operations) for rank in range(num_ranks)
    ]
    return [{each.partition: len(each) * (each.weight > 0) for each in plan.step(step)} for plan in plans]


def test_ranks_are_evened_out_over_all_partitions_by_counted_operations() -> None:
    by_tokens = rows_of(two_packs(), 0, 3)
    assert by_tokens == [{"low": 0, "high": 1}, {"low": 0, "high": 1}, {"low": 6, "high": 0}]
    operations = {"low": {16: 20.0}, "high": {256: 50.0}}  # 220 in all: 73 of them each
    assert rows_of(two_packs(), 0, 3, operations) == [
        {"low": 1, "high": 1},
        {"low": 1, "high": 1},
        {"low": 4, "high": 0},
    ]
    # Between the counted numbers operations lie on a line: 1, 3 and 9 for 4, 16 and 64 patches.
    sizes = packed(sizes_px=[32, 64, 128], token_budget=3 * 28)
    plans = [
        BatchPlan(sizes, None, rank, 2, patch_size=16, operations={"low": {4: 1, 28: 5, 64: 9}}) for rank in (0, 1)
    ]
    assert [sorted(shape.grid.rows for each in plan.step(0) for shape in each.shapes) for plan in plans] == [
        [2, 4],
        [8],
    ]


def test_each_rank_has_images_in_its_turn() -> None:
    """Or a rank would never read the streams of a partition with few images."""
    for recipe in (two_packs(), recipe_with(batch_size=2)):
        seen = [Counter[str](), Counter[str](), Counter[str](), Counter[str]()]
        for step in range(4):
            for counter, own in zip(seen, rows_of(recipe, step, 4), strict=True):
                counter.update(own)
        name = recipe.partitions[-1].name
        assert [counter[name] for counter in seen] == [2, 2, 2, 2]


def test_a_rank_without_images_passes_one_that_counts_for_nothing() -> None:
    recipe = two_packs(accumulation_steps=2)
    low, rest, high = BatchPlan(recipe, 20, 2, 3, patch_size=16).step(0)
    assert (len(low), len(rest), high.weight, high.teachers, high.size_px) == (3, 3, 0, (), None)
    assert (high.indices, high.rows, high.num_images) == (step_of(recipe, 0)[2].indices[:1], (0,), 2)
    assert high.shapes == low.shapes[:1]  # the smallest of the step
    assert high.uniform("a").shape == (1,)


def test_sizes_follow_their_probabilities() -> None:
    for weights, expected in (([1, 0, 3], [0.25, 0, 0.75]), (None, [1 / 3] * 3)):
        sizes = [draw_size([32, 48, 64], weights, 0, "size", step) for step in range(400)]
        assert [sizes.count(size) / 400 for size in (32, 48, 64)] == pytest.approx(expected, abs=0.1)


def partition_with(**fields) -> PartitionRecipe:
    return PartitionRecipe(**{"sizes_px": [64, 128], "vitdet_windows": [2, 3, 4, 8], **fields})


def test_windows_that_fit_are_smaller_than_the_grid_and_divide_it_or_are_ragged() -> None:
    even, ragged = (partition_with(vitdet_ragged=is_ragged) for is_ragged in (False, True))
    assert [fitting_windows(even, Grid(side, side)) for side in (4, 8, 16)] == [[2], [2, 4], [2, 4, 8]]
    assert [fitting_windows(ragged, Grid(side, side)) for side in (4, 8)] == [[2, 3], [2, 3, 4]]
    assert fitting_windows(partition_with(vitdet_windows=None), Grid(4, 4)) == []


@pytest.mark.parametrize(
    ("grids", "is_ragged", "expected"),
    [([Grid(4, 4)], False, {2}), ([Grid(8, 8)], False, {2, 4}), ([Grid(9, 9), Grid(4, 5), Grid(2, 2)], True, {2, 3})],
)
def test_a_step_draws_a_window_that_fits_at_the_stated_share(grids: list, is_ragged: bool, expected: set) -> None:
    partition = partition_with(vitdet_ragged=is_ragged, vitdet_probability=0.25)
    drawn = [draw_window(partition, grids, 0, step) for step in range(400)]
    counts = Counter(drawn)
    assert counts.keys() == {None, *expected}
    assert 260 < counts[None] < 340
    assert all(counts[window] > 20 for window in expected)
    for name, seed in (("low", 1), ("high", 0)):
        other = partition.replace(name=name)
        assert drawn != [draw_window(other, grids, seed, step) for step in range(400)]


@pytest.mark.parametrize(
    ("partition", "config", "views", "refused"),
    [
        ({"vitdet_windows": None}, {"num_hidden_layers": 1}, {}, None),
        ({"vitdet_windows": [2, 4]}, {}, {}, None),
        ({"vitdet_windows": [3, 7], "vitdet_ragged": True}, {}, {}, None),
        ({"sizes_px": [64], "vitdet_windows": [3], "vitdet_ragged": True}, {}, {}, None),
        # No block has windows.
        ({}, {"vitdet_num_global": 4}, {}, "vitdet_windows` .*`student.config.vitdet_num_global`"),
        ({}, {"vitdet_num_windowed": 0}, {}, "vitdet_windows` .*`student.config.vitdet_num_windowed`"),
        ({}, {"num_hidden_layers": 1}, {}, "vitdet_windows` .*only block"),
        # A size has no window.
        ({"vitdet_windows": [4, 8]}, {}, {}, "vitdet_windows` .*64 px.*`vitdet_ragged"),
        ({"vitdet_windows": [8], "vitdet_ragged": True}, {}, {}, r"vitdet_windows` .*is 3\."),
        ({"sizes_px": [16]}, {}, {}, "vitdet_windows` .*take out that size"),
        ({"sizes_px": [64], "vitdet_windows": [3], "vitdet_ragged": True}, {}, {"is_square": False}, "vitdet_windows`"),
        # A window has no size.
        ({}, {}, {}, r"vitdet_windows` .*\[3, 8\]"),
        ({"vitdet_ragged": True}, {}, {}, r"vitdet_windows` .*\[8\]"),
        # No window divides images of several shapes.
        ({"vitdet_windows": [2, 3], "token_budget": 1000}, {}, {}, "vitdet_ragged`"),
        ({"vitdet_windows": [2, 3]}, {}, {"is_square": False}, "vitdet_ragged`"),
        ({"vitdet_windows": [2], "vitdet_ragged": True}, {}, {"is_square": False}, None),
    ],
)
def test_windows_that_could_have_no_effect_are_refused(partition, config, views, refused: str | None) -> None:
    fields = {"num_hidden_layers": 6, "vitdet_num_global": 2, **config}
    recipe, student = small_recipe(views=views), RadioConfig.from_preset("radio-test", **fields)
    if refused is None:
        check_windows(recipe, partition_with(**partition), student)
        return
    with pytest.raises(RecipeError, match=f"`partitions.low.{refused}"):
        check_windows(recipe, partition_with(**partition), student)
