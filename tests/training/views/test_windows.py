from collections import Counter

import pytest
from small_recipes import small_recipe

from modeling_radio import RadioConfig
from training.recipe import PartitionRecipe, RecipeError
from training.views.plan import Grid, check_windows, draw_window, fitting_windows


STUDENT = RadioConfig.from_preset("radio-test", num_hidden_layers=6, vitdet_num_global=2)


def partition_with(**fields) -> PartitionRecipe:
    return PartitionRecipe(**{"sizes_px": [64, 128], "vitdet_windows": [2, 3, 4, 8], **fields})


def check(partition: PartitionRecipe, config: RadioConfig, **views) -> None:
    check_windows(small_recipe(views=views), partition, config)


def test_only_windows_smaller_than_the_grid_that_divide_it_fit() -> None:
    assert fitting_windows(partition_with(), Grid(4, 4)) == [2]
    assert fitting_windows(partition_with(), Grid(8, 8)) == [2, 4]
    assert fitting_windows(partition_with(), Grid(16, 16)) == [2, 4, 8]
    assert fitting_windows(partition_with(vitdet_windows=None), Grid(4, 4)) == []


def test_ragged_ones_need_only_be_smaller() -> None:
    assert fitting_windows(partition_with(vitdet_ragged=True), Grid(4, 4)) == [2, 3]
    assert fitting_windows(partition_with(vitdet_ragged=True), Grid(8, 8)) == [2, 3, 4]


@pytest.mark.parametrize(
    ("grids", "is_ragged", "expected"),
    [
        ([Grid(4, 4)], False, {2}),
        ([Grid(8, 8)], False, {2, 4}),
        ([Grid(4, 4)], True, {2, 3}),
        ([Grid(9, 9), Grid(4, 5), Grid(2, 2)], True, {2, 3}),
    ],
)
def test_a_step_draws_one_that_fits_its_size_at_the_stated_share(grids: list, is_ragged: bool, expected: set) -> None:
    partition = partition_with(vitdet_ragged=is_ragged, vitdet_probability=0.25)
    drawn = [draw_window(partition, grids, 0, step) for step in range(400)]
    assert drawn == [draw_window(partition, grids, 0, step) for step in range(400)]
    counts = Counter(drawn)
    assert set(counts) == {None, *expected}
    assert 260 < counts[None] < 340
    assert all(counts[window] > 20 for window in expected)


def test_seed_and_partition_decide_the_draws() -> None:
    draws = {
        (seed, name): tuple(draw_window(partition_with(name=name), [Grid(8, 8)], seed, step) for step in range(40))
        for seed, name in [(0, "low"), (1, "low"), (0, "high")]
    }
    assert len(set(draws.values())) == 3


def test_no_windows_and_windows_that_fit_are_accepted() -> None:
    check(partition_with(vitdet_windows=None), RadioConfig.from_preset("radio-test", num_hidden_layers=1))
    check(partition_with(vitdet_windows=[2, 4]), STUDENT)
    check(partition_with(vitdet_ragged=True, vitdet_windows=[3, 7]), STUDENT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vitdet_num_global": 4},
            r"got \[2, 4\]\. Set `student.config.vitdet_num_global` to at most 3 \(now 4, of 6 b",
        ),
        ({"vitdet_num_windowed": 0}, r"Set `student.config.vitdet_num_windowed` to at least 1\."),
        ({"num_hidden_layers": 1}, "The student's only block is its last"),
    ],
)
def test_students_without_windowed_blocks_are_refused(fields: dict, message: str) -> None:
    config = RadioConfig.from_preset("radio-test", **{"num_hidden_layers": 6, "vitdet_num_global": 2, **fields})
    with pytest.raises(RecipeError, match=message) as error:
        check(partition_with(vitdet_windows=[2, 4]), config)
    assert str(error.value).startswith("`partitions.low.vitdet_windows` must be null where all blocks attend globally")


@pytest.mark.parametrize("depth", range(2, 13))
def test_the_number_of_global_blocks_that_the_message_names_is_the_largest(depth: int) -> None:
    def has_windowed_blocks(num_global: int) -> bool:
        fields = {"num_hidden_layers": depth, "vitdet_num_global": num_global}
        return RadioConfig.from_preset("radio-test", **fields).has_windowed_blocks

    assert has_windowed_blocks(depth // 2)
    assert not has_windowed_blocks(depth // 2 + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vitdet_windows": [4, 8]},
            r"must have a window smaller than each size's grid and a divisor of it, got \[4, 8\]\. The largest for "
            r"64 px, 4 tokens a side, is 2 \(with `vitdet_ragged: true` any smaller one would do\)\.",
        ),
        (
            {"vitdet_windows": [8], "vitdet_ragged": True},
            r"must have a window smaller than each size's grid, got \[8\]\. The largest for 64 px, .*, is 3",
        ),
        ({"sizes_px": [16]}, r"got \[2, 3, 4, 8\]\. None is for 16 px, a single token: take out that size\."),
        (
            {},
            r"must be windows smaller than the grid of some size and a divisor of it, got \[3, 8\] with grids of "
            r"\[4, 8\] tokens a side\. Take them out\.",
        ),
        (
            {"vitdet_ragged": True},
            r"must be windows smaller than the grid of some size, got \[8\] with grids of \[4, 8\] tokens a side",
        ),
    ],
)
def test_windows_that_could_not_act_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"`partitions.low.vitdet_windows` .*{message}"):
        check(partition_with(**fields), STUDENT)


def test_windows_over_images_of_several_shapes_must_be_ragged() -> None:
    packed = partition_with(vitdet_windows=[2, 3], token_budget=1000)
    for partition, views in [(packed, {}), (partition_with(vitdet_windows=[2, 3]), {"is_square": False})]:
        with pytest.raises(RecipeError, match=r"`partitions.low.vitdet_ragged` must be true .*, got false\. No window"):
            check(partition, STUDENT, **views)
        check(partition.replace(vitdet_ragged=True, vitdet_windows=[2]), STUDENT, **views)


def test_the_narrowest_images_count() -> None:
    partition = partition_with(sizes_px=[64], vitdet_windows=[3], vitdet_ragged=True)
    check(partition, STUDENT)
    with pytest.raises(RecipeError, match=r"got \[3\]\. The largest for 64 px, 3 tokens a side, is 2"):
        check(partition, STUDENT, is_square=False)
