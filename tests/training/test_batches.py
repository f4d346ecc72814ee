from collections import Counter

import pytest
import torch

from training.batches import Batch, BatchPlan
from training.recipe import PartitionRecipe, Recipe, RecipeError, TeacherRecipe
from training.resolutions import draw_size


def recipe_with(**partition) -> Recipe:
    partitions = [PartitionRecipe(**{"name": "low", "sizes_px": [32, 64], "batch_size": 8, **partition})]
    return Recipe(name="test", teachers=[TeacherRecipe(name="t", kind="k")], partitions=partitions)


def rows(batches: list[Batch]) -> list[tuple[int, list[float]]]:
    """Each image with the random numbers of its view."""
    return [
        (index, numbers.tolist())
        for batch in sorted(batches, key=lambda batch: batch.start)
        for index, numbers in zip(
            batch.indices, torch.cat([batch.uniform("a", 2), batch.normal("b", 1)], 1), strict=True
        )
    ]


@pytest.mark.parametrize(("num_ranks", "accumulation_steps"), [(1, 4), (2, 1), (4, 2)])
def test_split_over_ranks_and_parts_sees_the_same_images_and_numbers(num_ranks: int, accumulation_steps: int) -> None:
    whole = BatchPlan(recipe_with(), 20).step(7)
    recipe = recipe_with(accumulation_steps=accumulation_steps)
    parts = [batch for rank in range(num_ranks) for batch in BatchPlan(recipe, 20, rank, num_ranks).step(7)]
    assert len(parts) == num_ranks * accumulation_steps
    assert rows(parts) == rows(whole)
    assert {batch.size_px for batch in parts} == {whole[0].size_px}


def test_step_depends_on_its_number_only() -> None:
    in_order = list(BatchPlan(recipe_with(), 20).steps(0, 6))
    assert BatchPlan(recipe_with(), 20).step(5) == [in_order[-1]]


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    indices = [index for batch in BatchPlan(recipe_with(), 20).steps(0, 10) for index in batch.indices]
    epochs = [indices[start : start + 20] for start in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batch_larger_than_the_data_set() -> None:
    (batch,) = BatchPlan(recipe_with(), 3).step(0)
    assert sorted(Counter(batch.indices).values()) == [2, 3, 3]


def test_seed_label_partition_and_step_give_other_numbers() -> None:
    plan = BatchPlan(recipe_with(), 20)
    (batch,), (later,) = plan.step(0), plan.step(1)
    assert not torch.equal(batch.uniform("a"), batch.uniform("b"))
    assert not torch.equal(batch.uniform("a"), later.uniform("a"))
    assert torch.equal(batch.uniform("a"), batch.uniform("a"))


def test_weights_of_a_partition_sum_to_one() -> None:
    assert sum(batch.weight for batch in BatchPlan(recipe_with(accumulation_steps=4), 20).step(0)) == 1


def test_all_partitions_take_part_in_a_step() -> None:
    recipe = recipe_with()
    recipe.partitions.append(PartitionRecipe(name="high", sizes_px=[128], batch_size=2))
    plan = BatchPlan(recipe, 20)
    assert [(batch.partition, len(batch)) for batch in plan.step(0)] == [("low", 8), ("high", 2)]
    assert (plan.images_per_step, plan.batches_per_step) == (10, 2)


def test_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"batch_size` 8 must be a multiple of 6 \(3 ranks x 2"):
        BatchPlan(recipe_with(accumulation_steps=2), 20, num_ranks=3)


def test_sizes_follow_their_probabilities() -> None:
    sizes = Counter(draw_size([32, 48, 64], [1, 0, 3], 0, "size", step) for step in range(400))
    assert sizes[48] == 0
    assert 0.65 < sizes[64] / 400 < 0.85
    equal = Counter(draw_size([32, 64], None, 0, "size", step) for step in range(400))
    assert 0.4 < equal[32] / 400 < 0.6


def test_size_is_the_window_unless_windows_are_given() -> None:
    assert all(batch.window_px == batch.size_px for batch in BatchPlan(recipe_with(), 20).steps(0, 9))
    batches = list(BatchPlan(recipe_with(windows_px=[96]), 20).steps(0, 9))
    assert {batch.window_px for batch in batches} == {96}
    assert {batch.size_px for batch in batches} == {32, 64}


def test_vitdet_windows_are_drawn_by_step_alike_on_all_ranks() -> None:
    recipe = recipe_with(vitdet_windows=[2, 3], vitdet_probability=0.25)
    plans = [BatchPlan(recipe, 20, rank, 2) for rank in range(2)]
    drawn = [plans[0].step(step)[0].vitdet_window for step in range(400)]
    assert drawn == [plans[1].step(step)[0].vitdet_window for step in range(400)]
    counts = Counter(drawn)
    assert set(counts) == {None, 2, 3}
    assert 260 < counts[None] < 340
    assert BatchPlan(recipe_with(), 20).step(0)[0].vitdet_window is None
