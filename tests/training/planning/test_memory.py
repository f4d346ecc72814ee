"""The number of parts of a step that fits into a GPU's memory."""

import pytest

from modeling_radio.training.planning.costs import MEMORY_SHARE, Networks
from modeling_radio.training.planning.memory import (
    GIB,
    fit_accumulation,
    memory_between_passes,
    memory_of_passes,
)
from modeling_radio.training.planning.simulation import deal_steps, patches_of_passes
from modeling_radio.training.recipes.recipe import Recipe


NUM_GPUS = 2
PACKS = [
    {"name": "low", "sizes_px": [32, 64], "token_budget": 3000, "accumulation_steps": "auto"},
    {"name": "high", "sizes_px": [128, 192], "token_budget": 400, "accumulation_steps": 1},
]


def needed_gib(networks: Networks, stage: Recipe, num_gpus: int = NUM_GPUS) -> float:
    """Return the memory of a card that just holds the fullest pass of "low"."""
    passes = patches_of_passes(deal_steps(stage, num_gpus, 16, None))
    sizes = memory_of_passes(networks, stage, num_gpus, {name: max(each) for name, each in passes.items()})
    memory = memory_between_passes(networks, [stage], num_gpus).with_pass(sizes["low"])
    return memory.total(is_checkpointed=stage.student.gradient_checkpointing) / GIB / MEMORY_SHARE


@pytest.mark.parametrize(("num_parts", "is_checkpointed"), [(1, False), (2, True), (5, False)])
def test_auto_is_the_fewest_parts_that_fit(
    networks: Networks, recipe: Recipe, num_parts: int, is_checkpointed: bool
) -> None:
    packed = recipe.replace(partitions=PACKS, student={"gradient_checkpointing": is_checkpointed})
    given = packed.replace(partitions=[packed.partitions[0].replace(accumulation_steps=num_parts), PACKS[1]])
    memory_gib = needed_gib(networks, given)
    low, high = fit_accumulation(networks, packed, NUM_GPUS, 1.0001 * memory_gib, None).partitions
    assert (low.accumulation_steps, high.accumulation_steps) == (num_parts, 1)
    less, _ = fit_accumulation(networks, packed, NUM_GPUS, 0.9999 * memory_gib, None).partitions
    assert less.accumulation_steps > num_parts


def test_where_nothing_fits_each_image_is_a_part(networks: Networks, recipe: Recipe) -> None:
    partition = recipe.partitions[0].replace(accumulation_steps="auto")
    (low,) = fit_accumulation(networks, recipe.replace(partitions=[partition]), NUM_GPUS, 0.01, None).partitions
    assert low.accumulation_steps == 8 // NUM_GPUS


def test_images_of_the_largest_size_fit_though_no_simulated_step_draws_it(networks: Networks, recipe: Recipe) -> None:
    low = {"name": "low", "sizes_px": [32, 64], "probabilities": [1, 1e-9], "batch_size": 8}
    rare = recipe.replace(partitions=[low])
    always = recipe.replace(partitions=[{**low, "probabilities": [0, 1]}])
    assert needed_gib(networks, rare) == pytest.approx(needed_gib(networks, always))
