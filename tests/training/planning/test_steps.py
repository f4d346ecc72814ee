"""What a step of each partition costs."""

import pytest

from training.planning.costs import Networks, at_size, plan_stage, with_split_teachers
from training.recipe import Recipe


def test_step_averages_over_sizes_and_counts_each_partitions_teachers(networks: Networks, recipe: Recipe) -> None:
    low, high = plan_stage(networks, recipe, 2)
    expected = 8 * (0.25 * networks.student_cost(32).flops + 0.75 * networks.student_cost(64).flops)
    assert low.student_flops == pytest.approx(expected)
    assert (low.images_per_pass, high.images_per_pass) == (4, 1)
    assert low.teacher_flops.keys() == {"siglip2-g", "sam3"}
    assert high.teacher_flops == {"siglip2-g": pytest.approx(2 * networks.teachers["siglip2-g"].flops(128, 1))}
    assert high.flops == high.student_flops + high.teacher_flops["siglip2-g"]
    # 4 images at the largest size
    assert low.activations == (4 * networks.student_cost(64).kept, 4 * networks.student_cost(64).kept_checkpointed)
    assert low.targets == 4 * 4 * 16 * (1536 + 1024)  # 4 bytes a number, 4 images of 16 cells


def test_a_token_budget_costs_what_its_images_do(networks: Networks, recipe: Recipe) -> None:
    """Of one size, so that the number of images is known."""
    low = recipe.partitions[0]
    patches = (low.sizes_px[0] // 16) ** 2
    by_images = recipe.replace(partitions=[low.replace(sizes_px=low.sizes_px[:1], probabilities=None)])
    budget = {"batch_size": None, "token_budget": low.batch_size * patches}
    by_tokens = recipe.replace(partitions=[by_images.partitions[0].replace(**budget)])
    (expected,), (cost,) = plan_stage(networks, by_images, 1), plan_stage(networks, by_tokens, 1)
    assert (cost.images, cost.student_flops) == (expected.images, expected.student_flops)
    assert cost.activations == pytest.approx(expected.activations)
    assert cost.teacher_flops == expected.teacher_flops


def test_split_teachers_see_images_of_their_own(networks: Networks, recipe: Recipe) -> None:
    low, _ = plan_stage(networks, recipe, 2)
    split = {cost.partition.name: cost for cost in plan_stage(networks, with_split_teachers(recipe), 2)}
    assert split.keys() == {"low-siglip2-g", "low-sam3", "high-siglip2-g", "high-sam3"}
    assert split["low-siglip2-g"].images == low.images / 2
    assert split["low-siglip2-g"].teacher_flops == {"siglip2-g": pytest.approx(low.teacher_flops["siglip2-g"] / 2)}


def test_split_teachers_need_no_ranks_of_their_own(networks: Networks, recipe: Recipe) -> None:
    shared = recipe.replace(partitions=[partition.replace(rank_share=1) for partition in recipe.partitions])
    costs = [plan_stage(networks, with_split_teachers(each), 2) for each in (shared, recipe)]
    assert [cost.flops for cost in costs[0]] == [cost.flops for cost in costs[1]]


def test_one_resolution_keeps_the_number_of_images(networks: Networks, recipe: Recipe) -> None:
    (low, _), (smallest, _) = (plan_stage(networks, each, 1) for each in (recipe, at_size(recipe, min)))
    assert smallest.images == low.images
    assert smallest.student_flops == pytest.approx(8 * networks.student_cost(32).flops)


def test_targets_of_parts_that_are_answered_at_once_are_held_together(networks: Networks, recipe: Recipe) -> None:
    low = recipe.partitions[0].replace(accumulation_steps=2)
    sizes = [
        plan_stage(networks, recipe.replace(partitions=[low], views={"parts_at_once": parts}), 1)[0].targets
        for parts in (1, 2, 4)
    ]
    assert sizes == [sizes[0], 2 * sizes[0], 2 * sizes[0]]  # there are but two parts


def test_a_network_that_several_teachers_read_is_counted_once(recipe: Recipe) -> None:
    options = [{}, {"adaptor_name": "siglip2-g"}, {"adaptor_name": "dino_v3"}]
    names = ["whole", "text", "dense"]
    teachers = [
        {"name": name, "kind": "radio", "source": "nvidia/C-RADIOv4-SO400M", "options": own}
        for name, own in zip(names, options, strict=True)
    ]
    low, high = recipe.partitions
    shared = recipe.replace(teachers=teachers, partitions=[low, high.replace(teachers=["text", "dense"])])
    networks = Networks(shared)
    alone = {name: networks.teachers[name].flops(128, 2) for name in names}
    of_low, of_high = (networks.teacher_flops(each, 128, 2) for each in (names, names[1:]))
    assert (of_low["whole"], of_high["text"]) == (alone["whole"], alone["text"])
    heads = {name: alone[name] - alone["whole"] for name in names[1:]}
    assert {name: of_low[name] for name in names[1:]} == heads
    assert of_high["dense"] == heads["dense"] < 0.1 * alone["dense"]
    assert plan_stage(networks, shared, 1)[1].teacher_flops == of_high
    assert networks.teachers["dense"].num_parameters < 0.2 * networks.teachers["whole"].num_parameters
