"""Cost of all stages of a run."""

import pytest

from modeling_radio.training.planning.costs import CARDS, Card
from modeling_radio.training.planning.memory import GIB, Memory
from modeling_radio.training.planning.plan import Plan, advise, describe, networks_table, steps_in
from modeling_radio.training.planning.simulation import Speed
from modeling_radio.training.recipes.recipe import Recipe, load_recipe


A100 = CARDS["A100"]


def test_time_is_that_of_all_steps_in_every_table(plan: Plan) -> None:
    (costs,) = plan.costs.values()
    speed = Speed(A100, 0.5, 0.1, 0)  # the GPU never waits, neither for files nor for starts
    one = Plan(plan.recipe, 1, plan.networks)
    assert one.seconds(speed) == pytest.approx(one.flops() / (0.5 * 312e12), rel=0.02)  # of shapes and of their mean
    assert plan.seconds(speed) == 10 * plan.step_time(plan.recipe, speed).total
    large = speed._replace(image_kb=300)
    assert plan.seconds(large) == pytest.approx(10 * (8 * 3 + 2 * 2) / 2 * 300 * 1e-4 / 2)
    text = describe(plan, [A100], large)
    (row,) = [line for line in text.splitlines() if line.startswith("| A100 |")]
    (time,) = [line for line in text.splitlines() if line.startswith("| time of the whole run |")]
    assert row.split(" | ")[5] == time.strip("| ").split(" | ")[1]
    student = 10 * sum(cost.student_flops for cost in costs)
    assert plan.flops(with_teachers=False) == pytest.approx(student)


def test_the_pass_that_decides_memory_is_named(plan: Plan, recipe: Recipe) -> None:
    assert plan.fullest_pass() in ("low", "high")
    small = {"partitions": [{"name": "low", "batch_size": 2}, {"name": "high", "batch_size": 1}]}
    staged = Plan(recipe.replace(stages=[{"name": "first"}, {"name": "last", **small}]), 2, plan.networks)
    assert staged.fullest_pass() == f"first, {plan.fullest_pass()}"
    assert f"| fullest pass: {staged.fullest_pass()} | " in describe(staged, [A100], Speed(A100, 0.5, 100, 0))


def test_steps_that_fit_some_days(plan: Plan, recipe: Recipe) -> None:
    speed = Speed(A100, 0.5, 0.1, 6)
    days = 3.5 * plan.step_time(plan.recipe, speed).total / 86_400
    assert steps_in(plan, speed, days).endswith(": schedule.num_steps=3")
    staged = Plan(
        recipe.replace(stages=[{"name": "a"}, {"name": "b", "schedule": {"num_steps": 20}}]), 2, plan.networks
    )
    words = steps_in(staged, speed, 2 * staged.seconds(speed) / 86_400).split()
    assert words[-2:] == ["stages.a.schedule.num_steps=20", "stages.b.schedule.num_steps=40"]


def test_advice_is_a_setting_that_helps(plan: Plan) -> None:
    assert "`data.num_workers=" in advise(plan, Speed(A100, 0.5, 1e6, 0))
    assert "`views.aspect_steps`" in advise(plan, Speed(A100, 0.5, 0.1, 1e9))
    speed = Speed(A100, 0.5, 0.1, 0)
    assert "sam3 takes most of a step here; no setting" in advise(plan, speed)
    slow = speed._replace(start_us=1e6)
    assert plan.step_time(plan.recipe, slow).total == plan.simulated["tiny"].starts


def test_taps_are_counted(recipe: Recipe, plan: Plan) -> None:
    """Three operations of two for each weight of a head, on every patch that it reads: forward, and both ways back."""
    roles = {"siglip2-g": "semantic", "sam3": "task"}
    teachers = [entry.replace(role=roles[entry.name]) for entry in recipe.teachers]
    tapped = recipe.replace(teachers=teachers, taps={"weight": 0.25})
    plain, plan = plan, Plan(tapped, 2)
    taps = plan.networks.heads_of(tapped)
    assert [tap.name for tap in taps] == ["siglip2-g@0", "sam3@0", "siglip2-g@1", "sam3@1"]
    learner = plan.networks.learner(taps)
    dense = [head.features for head in learner.taps.heads.values()]
    weights = sum(each.fc1.weight.numel() + each.final[2].weight.numel() for each in dense)
    costs = [networks.student_cost(128, taps) for networks, taps in ((plain.networks, ()), (plan.networks, taps))]
    assert costs[1].flops - costs[0].flops == pytest.approx(6 * 64 * weights, rel=0.1)
    assert costs[1].kept > costs[0].kept
    assert plan.flops() > plain.flops()
    assert "| 4 auxiliary heads | " in networks_table(plan)
    assert "auxiliary" not in networks_table(plain)


def test_a_card_fits_with_room_to_spare() -> None:
    memory = Memory(*(size * GIB for size in (3, 1, 2, 1, 11, 2, 4)))
    cards = [Card("", 1e12, memory_gib, "") for memory_gib in (20.1, 19.9, 10.1, 9.9)]
    assert [memory.fits(card) for card in cards] == ["yes", "checkpointed", "checkpointed", "no"]
    # An update, when activations are gone, may need more than a checkpointed pass.
    assert memory._replace(update=5 * GIB).total(is_checkpointed=True) == 10 * GIB


def test_disk_and_network(plan: Plan, recipe: Recipe) -> None:
    numbers = plan.networks.num_parameters
    assert plan.checkpoint_bytes() == numbers * (16 * (2 + 1) + 4)  # two, one that is written, an export
    staged = Plan(plan.recipe.replace(stages=[{"name": "first"}, {"name": "last"}]), 2)
    assert staged.checkpoint_bytes() == numbers * (16 * (4 + 1) + 4 * 3)
    assert plan.gradient_bytes() == 4 * numbers  # a half of twice as many
    assert Plan(recipe, 1).gradient_bytes() == 0
    assert plan.files_read() == plan.images_seen() == 10 * (8 + 2)


def test_cached_teachers_run_once_on_each_image() -> None:
    recipe = load_recipe("demo", ["schedule.num_steps=10", "schedule.warmup_steps=1"])
    plan, expected = Plan(recipe, 1), 3 * 128**2
    num_images, teachers = recipe.data.num_images, plan.networks.teachers.values()
    assert num_images is not None
    once = num_images * sum(teacher.flops(128, 1) for teacher in teachers)
    assert plan.flops() - plan.flops(with_teachers=False) == pytest.approx(once)
    assert plan.files_read() == num_images
    for teacher in teachers:
        expected += 2 * (8 * 8 * teacher.feature_dim + (teacher.summary_dim or 0))
    assert plan.cache_bytes_per_image(128) == expected
