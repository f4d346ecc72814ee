from collections import Counter

import pytest
import torch
from small_recipes import small_recipe

from training.recipe import DataRecipe, PartitionRecipe, Recipe, RecipeError, TeacherRecipe
from training.views.plan import Batch, BatchPlan, divide_ranks, teachers_of_rank


def recipe_with(**partition) -> Recipe:
    return small_recipe(partitions=[{"name": "low", "sizes_px": [32, 64], "batch_size": 8, **partition}])


def rows(batches: list[Batch]) -> list[tuple[int, list[float]]]:
    """Each image with the random numbers of its view."""
    return [
        (index, numbers.tolist())
        for batch in sorted(batches, key=lambda batch: batch.rows)
        for index, numbers in zip(
            batch.indices, torch.cat([batch.uniform("a", 2), batch.normal("b", 1)], 1), strict=True
        )
    ]


@pytest.mark.parametrize(("num_ranks", "accumulation_steps"), [(1, 4), (2, 1), (4, 2)])
def test_split_over_ranks_and_parts_sees_the_same_images_and_numbers(num_ranks: int, accumulation_steps: int) -> None:
    whole = BatchPlan(recipe_with(), 20, patch_size=16).step(7)
    recipe = recipe_with(accumulation_steps=accumulation_steps)
    parts = [
        batch for rank in range(num_ranks) for batch in BatchPlan(recipe, 20, rank, num_ranks, patch_size=16).step(7)
    ]
    assert len(parts) == num_ranks * accumulation_steps
    assert rows(parts) == rows(whole)
    assert {batch.shapes[0] for batch in parts} == {whole[0].shapes[0]}


def test_step_depends_on_its_number_only() -> None:
    in_order = list(BatchPlan(recipe_with(), 20, patch_size=16).steps(0, 6))
    assert BatchPlan(recipe_with(), 20, patch_size=16).step(5) == [in_order[-1]]


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    indices = [index for batch in BatchPlan(recipe_with(), 20, patch_size=16).steps(0, 10) for index in batch.indices]
    epochs = [indices[start : start + 20] for start in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batch_larger_than_the_data_set() -> None:
    (batch,) = BatchPlan(recipe_with(), 3, patch_size=16).step(0)
    assert sorted(Counter(batch.indices).values()) == [2, 3, 3]


def test_seed_label_partition_and_step_give_other_numbers() -> None:
    plan = BatchPlan(recipe_with(), 20, patch_size=16)
    (batch,), (later,) = plan.step(0), plan.step(1)
    assert not torch.equal(batch.uniform("a"), batch.uniform("b"))
    assert not torch.equal(batch.uniform("a"), later.uniform("a"))
    assert torch.equal(batch.uniform("a"), batch.uniform("a"))


def test_weights_of_a_partition_sum_to_one() -> None:
    assert sum(batch.weight for batch in BatchPlan(recipe_with(accumulation_steps=4), 20, patch_size=16).step(0)) == 1


def test_weight_of_a_partition_is_shared_by_its_parts() -> None:
    batches = BatchPlan(recipe_with(accumulation_steps=4, weight=0.25), 20, patch_size=16).step(0)
    assert len(batches) == 4
    assert sum(batch.weight for batch in batches) == 0.25


def test_all_partitions_take_part_in_a_step() -> None:
    recipe = recipe_with()
    recipe.partitions.append(PartitionRecipe(name="high", sizes_px=[128], batch_size=2))
    plan = BatchPlan(recipe, 20, patch_size=16)
    assert [(batch.partition, len(batch)) for batch in plan.step(0)] == [("low", 8), ("high", 2)]
    assert (plan.images_per_step, plan.batches_per_step) == (10, 2)


def test_batch_too_small_for_its_parts_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"batch_size` must be at least 10, .*5 ranks x 2 accumulation steps, got 8"):
        BatchPlan(recipe_with(accumulation_steps=2), 20, num_ranks=5, patch_size=16)


def partitions_with(**shares: int | None) -> Recipe:
    recipe = recipe_with()
    recipe.partitions = [PartitionRecipe(name=name, batch_size=7, rank_share=share) for name, share in shares.items()]
    return recipe


def test_partitions_with_a_share_divide_the_ranks() -> None:
    partitions = partitions_with(low=3, all=None, high=1).partitions
    assert divide_ranks(partitions, 8) == {"low": range(6), "all": range(8), "high": range(6, 8)}
    assert divide_ranks(partitions, 1) == {"low": range(1), "all": range(1), "high": range(1)}
    without = partitions_with(low=None, high=None).partitions
    assert divide_ranks(without, 3) == {"low": range(3), "high": range(3)}


def test_number_of_ranks_that_no_share_divides_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"1 or a multiple of 4, got 6\. Use 8 ranks"):
        BatchPlan(partitions_with(low=3, high=1), 20, num_ranks=6, patch_size=16)


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 6])
def test_every_image_weighs_the_same_wherever_it_runs(num_ranks: int) -> None:
    """Averaged over ranks, each image must have one over its partition's batch, as if all ran in one place."""
    recipe = partitions_with(low=1, high=1, all=None)
    recipe.partitions[1].accumulation_steps = 2
    seen: dict[tuple[str, int], float] = {}
    for rank in range(num_ranks):
        for batch in BatchPlan(recipe, 20, rank, num_ranks, patch_size=16).step(4):
            assert len(batch) > 0
            for row in batch.rows:
                seen[batch.partition, row] = batch.weight / len(batch) / num_ranks
    assert seen.keys() == {(name, row) for name in ("low", "high", "all") for row in range(7)}
    assert all(weight == pytest.approx(1 / 7) for weight in seen.values())


def test_batches_name_the_teachers_of_their_partition() -> None:
    teachers = [TeacherRecipe(name=name, kind="k") for name in ("a", "b")]
    partitions = [PartitionRecipe(name="low"), PartitionRecipe(name="high", teachers=["b"])]
    recipe = Recipe(name="test", data=DataRecipe(source="s"), teachers=teachers, partitions=partitions)
    assert [batch.teachers for batch in BatchPlan(recipe, 20, patch_size=16).step(0)] == [("a", "b"), ("b",)]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"teachers": ["s"]}, r"`partitions.low.teachers` must be one of \['a', 'sam'\], got 's'"),
        ({"teachers": []}, r"`partitions.low.teachers` must be at least one name, or null for all, got \[\]"),
        ({"teachers": ["a"]}, r"such that each teacher sees one, got none of \['sam'\]"),
        ({"rank_share": 0}, "`partitions.low.rank_share` must be an integer above 0, or null, got 0"),
    ],
)
def test_bad_partition_is_refused(partition: dict, message: str) -> None:
    teachers = [TeacherRecipe(name=name, kind="k") for name in ("a", "sam")]
    with pytest.raises(RecipeError, match=message):
        Recipe(
            name="test",
            data=DataRecipe(source="s"),
            teachers=teachers,
            partitions=[{"name": "low", **partition}],
        )


def test_unequal_passes_are_refused_where_ranks_must_go_together() -> None:
    recipe = partitions_with(low=1, high=1)
    BatchPlan(recipe, 20, num_ranks=2, patch_size=16).check_equal_passes()
    recipe.partitions[1].accumulation_steps = 3
    BatchPlan(recipe, 20, patch_size=16).check_equal_passes()
    with pytest.raises(RecipeError, match=r"got 1 to 3\. .*equal `accumulation_steps` \(now .*'high': 3"):
        BatchPlan(recipe, 20, num_ranks=2, patch_size=16).check_equal_passes()


def test_vitdet_windows_follow_the_size_alike_on_all_ranks() -> None:
    recipe = recipe_with(vitdet_windows=[1, 2], vitdet_probability=0.5)
    plans = [BatchPlan(recipe, 20, rank, 2, patch_size=16) for rank in range(2)]
    first, second = (
        [(batch.shapes[0].grid.rows, batch.vitdet_window) for batch in plan.steps(0, 80)] for plan in plans
    )
    assert first == second
    assert set(first) == {(2, None), (2, 1), (4, None), (4, 1), (4, 2)}
    assert BatchPlan(recipe_with(), 20, patch_size=16).step(0)[0].vitdet_window is None


def test_streamed_images_come_in_order() -> None:
    batches = list(BatchPlan(recipe_with(), None, patch_size=16).steps(0, 2))
    assert [index for batch in batches for index in batch.indices] == list(range(16))


def test_a_rank_runs_the_teachers_of_its_partitions() -> None:
    recipe = small_recipe(
        "a",
        "b",
        "c",
        partitions=[
            {"name": "low", "teachers": ["c", "a"], "rank_share": 1},
            {"name": "high", "teachers": ["b"], "rank_share": 1},
        ],
    )
    assert [teachers_of_rank(recipe, rank, 4) for rank in range(4)] == [["a", "c"], ["a", "c"], ["b"], ["b"]]
    assert teachers_of_rank(recipe, 0, 1) == ["a", "b", "c"]
    cached = recipe.replace(views={"teachers": "cached"})  # each rank fills its share of the cache
    assert teachers_of_rank(cached, 3, 4) == ["a", "b", "c"]
