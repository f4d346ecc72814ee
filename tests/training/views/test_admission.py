import pytest
import torch
from small_recipes import small_recipe
from torch import Tensor

from training.data.image_table import Images
from training.recipe import Recipe, RecipeError
from training.views.plan import BatchPlan, admit_images, smallest_used_px


class Sized(Images):
    def __init__(self, *sides: int) -> None:
        self.sides = torch.tensor(sides)

    def __len__(self) -> int:
        return len(self.sides)

    def short_sides(self) -> Tensor:
        return self.sides


IMAGES = Sized(40, 300, 64, 100, 31, 128)


def recipe_with(ratio: float | None, teachers: str = "online") -> Recipe:
    partitions = [
        {"name": "low", "sizes_px": [16, 32], "batch_size": 4},
        {"name": "high", "sizes_px": [96], "batch_size": 3},
    ]
    data = {"source": "s", "image_size_px": 64, "filters": {"min_side_ratio": ratio}}
    return small_recipe(data=data, views={"teachers": teachers}, partitions=partitions)


def test_each_partition_sees_what_is_large_enough_for_its_largest_size() -> None:
    admitted = admit_images(IMAGES, recipe_with(1))
    assert {name: numbers.tolist() for name, numbers in admitted.items()} == {"low": [0, 1, 2, 3, 5], "high": [1, 3, 5]}
    assert admit_images(IMAGES, recipe_with(0.5))["high"].tolist() == [1, 2, 3, 5]
    assert admit_images(IMAGES, recipe_with(None)) == {}
    assert "low" not in admit_images(IMAGES, recipe_with(0.9))
    assert smallest_used_px(recipe_with(1)) == 32


def test_with_cached_features_all_use_the_size_of_the_cache() -> None:
    admitted = admit_images(IMAGES, recipe_with(1, "cached"))
    assert {name: numbers.tolist() for name, numbers in admitted.items()} == {"low": [1, 2, 3, 5], "high": [1, 2, 3, 5]}
    assert smallest_used_px(recipe_with(1, "cached")) == 64


def test_partition_without_an_image_is_an_error() -> None:
    with pytest.raises(
        RecipeError, match=r"an image of at least 384 px for partition 'high', got 4\.0: the largest has"
    ):
        admit_images(IMAGES, recipe_with(4))


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_plans_walk_through_what_is_admitted(num_ranks: int) -> None:
    recipe = recipe_with(1)
    admitted = admit_images(IMAGES, recipe)
    seen: dict[str, list[int]] = {"low": [], "high": []}
    for step in range(10):
        for rank in range(num_ranks):
            plan = BatchPlan(recipe, len(IMAGES), rank, num_ranks, patch_size=16, admitted=admitted)
            for batch in plan.step(step):
                seen[batch.partition] += batch.indices
    for name, numbers in admitted.items():
        assert set(seen[name]) == set(numbers.tolist())
        counts = torch.bincount(torch.tensor(seen[name]))[numbers]
        assert counts.max() - counts.min() <= 1
    everything = BatchPlan(recipe, len(IMAGES), patch_size=16)
    same = BatchPlan(recipe, len(IMAGES), patch_size=16, admitted={"low": torch.arange(6), "high": torch.arange(6)})
    assert [batch.indices for batch in everything.steps(0, 9)] == [batch.indices for batch in same.steps(0, 9)]
