"""What all stages of a run cost."""

import pytest
import torch

from training.planning.costs import CARDS, Card
from training.planning.plan import GIB, Memory, Plan, networks_table
from training.recipe import Recipe, load_recipe
from training.targets.feature_cache import FORMATS


A100 = CARDS["A100"]


def test_hours_follow_from_operations_peak_and_utilization(plan: Plan) -> None:
    (costs,) = plan.costs.values()
    flops = 10 * sum(cost.flops for cost in costs)
    assert plan.gpu_hours(A100, 0.5) == pytest.approx(flops / (0.5 * 312e12) / 3600)
    student = 10 * sum(cost.student_flops for cost in costs)
    assert plan.flops(with_teachers=False) == pytest.approx(student)
    assert plan.images_seen() == 10 * (8 + 2)


def test_taps_are_counted(recipe: Recipe, plan: Plan) -> None:
    """Three operations of two for each weight of a head, on every patch that it reads: forward, and both ways back."""
    roles = {"siglip2-g": "semantic", "sam3": "task"}
    teachers = [entry.replace(role=roles[entry.name]) for entry in recipe.teachers]
    tapped = recipe.replace(teachers=teachers, taps={"scheme": "soft"})
    plain, plan = plan, Plan(tapped, 2)
    taps = plan.networks.taps_of(tapped)
    assert [tap.name for tap in taps] == ["siglip2-g@0", "sam3@0", "siglip2-g@1", "sam3@1"]
    heads = plan.networks.tap_heads(taps)
    assert heads is not None
    dense = [head.features for head in heads.heads.values()]
    weights = sum(each.fc1.weight.numel() + each.final[2].weight.numel() for each in dense)
    costs = [networks.student_cost(128, taps) for networks, taps in ((plain.networks, ()), (plan.networks, taps))]
    assert costs[1].flops - costs[0].flops == pytest.approx(6 * 64 * weights, rel=0.1)
    assert costs[1].kept > costs[0].kept
    assert plan.flops() > plain.flops()
    assert "| heads of 4 taps | " in networks_table(plan)
    assert "taps" not in networks_table(plain)


def test_memory_is_that_of_the_largest_pass(plan: Plan) -> None:
    memory, (low, high) = plan.memory(), plan.costs["tiny"]
    assert (memory.student, memory.casts) == (20 * plan.networks.num_parameters, 2 * plan.networks.num_parameters)
    assert memory.teachers == sum(teacher.weight_bytes for teacher in plan.networks.teachers.values())
    assert memory.targets == max(low.targets, high.targets)
    assert (memory.activations, memory.checkpointed) == tuple(
        max(low.activations[index], high.activations[index]) for index in (0, 1)
    )


def test_a_card_fits_what_it_holds_with_room_to_spare() -> None:
    sizes = {"student": 3, "casts": 1, "teachers": 2, "targets": 1, "activations": 11, "checkpointed": 2}
    memory = Memory(**{name: size * GIB for name, size in sizes.items()})
    cards = [Card("", 1e12, memory_gib, "") for memory_gib in (20.1, 19.9, 10.1, 9.9)]
    assert [memory.fits(card) for card in cards] == ["yes", "checkpointed", "checkpointed", "no"]


def test_checkpoints_of_all_stages_stay(plan: Plan) -> None:
    numbers = plan.networks.num_parameters
    assert plan.checkpoint_bytes() == numbers * (16 * (2 + 1) + 4)  # two, one that is written, an export
    staged = Plan(plan.recipe.replace(stages=[{"name": "first"}, {"name": "last"}]), 2)
    assert staged.checkpoint_bytes() == numbers * (16 * (4 + 1) + 4 * 3)


def test_each_gpu_sends_almost_twice_the_gradients(plan: Plan, recipe: Recipe) -> None:
    assert plan.gradient_bytes() == 4 * plan.networks.num_parameters  # a half of twice as many
    assert Plan(recipe, 1).gradient_bytes() == 0


def test_cached_teachers_answer_every_image_once() -> None:
    recipe = load_recipe("demo", ["schedule.num_steps=10", "schedule.warmup_steps=1"])
    plan = Plan(recipe, 1)
    num_images = recipe.data.num_images
    assert num_images is not None
    once = num_images * sum(teacher.flops(128, 1) for teacher in plan.networks.teachers.values())
    assert plan.flops() - plan.flops(with_teachers=False) == pytest.approx(once)
    assert plan.files_read() == num_images


@pytest.mark.parametrize("cache_format", ["float16", "int8"])
def test_a_cached_image_takes_what_its_format_writes(cache_format: str) -> None:
    recipe = load_recipe("demo", [f"views.cache_format={cache_format}"])
    plan, fmt = Plan(recipe, 1), FORMATS[cache_format]
    expected = 3 * 128**2
    for teacher in plan.networks.teachers.values():
        features = torch.randn(1, 8, 8, teacher.feature_dim, generator=torch.Generator().manual_seed(0))
        expected += sum(entry.nbytes for entry in fmt.encode(features).values()) + 2 * (teacher.summary_dim or 0)
    assert plan.cache_bytes_per_image(128) == expected


def test_online_teachers_answer_in_every_step(plan: Plan) -> None:
    assert plan.files_read() == plan.images_seen()
