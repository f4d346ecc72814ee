"""Weights of teachers that are shown losses which a test writes down, and every method in a run of 12 steps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from small_recipes import small_recipe
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state
from torch import Tensor

from training.distillation import trainer
from training.distillation.checkpoints import SavedTensors
from training.distillation.tracking import RunHistory
from training.losses.weighting import (
    METHODS,
    PRIORS,
    WEIGHT_BOUNDS,
    AdaptiveWeights,
    LossTerm,
    TeacherDropping,
    TeacherWeights,
    bounded,
    prior_at,
)
from training.recipe import BalancingRecipe, Recipe, RecipeError
from training.views.plan import Batch, Grid, Shape


ROLES = {"a": "basic", "b": "semantic", "c": "task"}
HAS_SUMMARY = {"a": True, "b": True, "c": False}
NAMES = ("features/a", "features/b", "features/c", "summary/a", "summary/b")
CPU = torch.device("cpu")

Losses = Callable[[int], Mapping[str, float]]


def recipe_of(method: str, num_steps: int = 12, **balancing: int) -> Recipe:
    recipe = small_recipe(*ROLES, schedule={"num_steps": num_steps, "warmup_steps": 2})
    teachers = [entry.replace(role=ROLES[entry.name]) for entry in recipe.teachers]
    return recipe.replace(teachers=teachers, balancing={"method": method, **balancing})


def weights_of(method: str, **balancing: int) -> TeacherWeights:
    return METHODS[method](recipe_of(method, **balancing), HAS_SUMMARY, CPU)


def batch_of(step: int, rows: tuple[int, ...] = (0, 1), total: int = 2, teachers: str = "abc") -> Batch:
    shapes = (Shape(Grid(2, 2), Grid(2, 2)),) * len(rows)
    return Batch(0, step, "low", shapes, rows, rows, total, 1.0, tuple(teachers))


def see(weights: TeacherWeights, step: int, losses: Mapping[str, float]) -> None:
    """One step, in one pass."""
    weights.begin_step(step)
    weights.observe(batch_of(step), {name: torch.tensor(loss) for name, loss in losses.items()})
    weights.end_step()


def drive(weights: TeacherWeights, losses: Losses, steps: range) -> list[dict[str, float]]:
    """Show losses over some steps; return the weights of each."""
    rows = []
    for step in steps:
        see(weights, step, losses(step))
        rows.append(weights.scalars())
    return rows


def uneven(step: int) -> dict[str, float]:
    """Losses that fall at different speeds."""
    return {name: 2.0 * (0.95 - 0.1 * place) ** step for place, name in enumerate(NAMES)}


def times(factor: float, name: str, losses: Losses) -> Losses:
    return lambda step: {own: value * (factor if own == name else 1) for own, value in losses(step).items()}


def values(row: Mapping[str, float]) -> Tensor:
    return torch.tensor(list(row.values()), dtype=torch.float64)


def test_times_that_are_unset_follow_the_length_of_the_run() -> None:
    assert recipe_of("adaptive").balancing_times() == (2, 1, 1)
    assert recipe_of("adaptive", 10_000).balancing_times() == (2, 100, 1000)
    assert recipe_of("adaptive", start_step=5, period_steps=3, ramp_steps=0).balancing_times() == (5, 3, 0)


def test_a_warm_up_longer_than_the_run_leaves_time_for_weights() -> None:
    schedule = recipe_of("adaptive").schedule.replace(warmup_steps=500)
    assert recipe_of("adaptive").replace(schedule=schedule).balancing_times().start_step == 3


@pytest.mark.parametrize(("frozen_steps", "start_step"), [(0, 2), (6, 6), (12, 2)])
def test_losses_are_not_looked_at_before_a_frozen_trunk_learns(frozen_steps: int, start_step: int) -> None:
    recipe = recipe_of("adaptive")
    frozen = recipe.replace(optimizer=recipe.optimizer.replace(trunk_frozen_steps=frozen_steps))
    assert frozen.balancing_times().start_step == start_step


def test_weights_are_1_up_to_the_start_and_move_after_it() -> None:
    rows = drive(weights_of("adaptive"), uneven, range(12))
    assert all((values(row) == 1).all() for row in rows[:3])  # the ramp begins at step 2
    assert not torch.allclose(values(rows[-1]), torch.ones(5, dtype=torch.float64), atol=0.01)
    assert list(rows[0]) == [f"weight/{name}" for name in NAMES]


def test_losses_of_one_group_change_no_weight_of_the_other() -> None:
    """Or summaries would swallow the dense losses (PHI-S, A.8.1)."""
    plain = drive(weights_of("adaptive"), uneven, range(12))[-1]
    changed = drive(weights_of("adaptive"), lambda step: {**uneven(step), "summary/a": 5.0 + step}, range(12))[-1]
    for name in NAMES[:3]:
        assert changed[f"weight/{name}"] == pytest.approx(plain[f"weight/{name}"], rel=1e-12)
    assert changed["weight/summary/a"] != pytest.approx(plain["weight/summary/a"], rel=1e-3)


def test_a_ramp_spreads_the_change_over_its_steps() -> None:
    fast = drive(weights_of("adaptive", ramp_steps=0, period_steps=99), uneven, range(12))[4]
    slow = drive(weights_of("adaptive", ramp_steps=4, period_steps=99), uneven, range(12))[4]
    torch.testing.assert_close(values(slow) - 1, (values(fast) - 1) / 2)


@pytest.mark.parametrize("period", [1, 3])
def test_weights_go_on_from_saved_ones(period: int) -> None:
    whole = drive(weights_of("adaptive", period_steps=period), uneven, range(12))
    first, second = (weights_of("adaptive", period_steps=period) for _ in range(2))
    drive(first, uneven, range(7))
    second.load_state_dict(first.state_dict())
    assert drive(second, uneven, range(7, 12)) == whole[7:]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    weights = weights_of("adaptive")
    drive(weights, uneven, range(6))
    before = {name: tensor.clone() for name, tensor in weights.state_dict().items() if name in ("means", "num_seen")}
    drive(weights, lambda step: {**uneven(step), "features/a": float("nan")}, range(6, 7))
    for name, tensor in before.items():
        assert torch.equal(weights.state_dict()[name], tensor)
    assert torch.isfinite(values(drive(weights, uneven, range(7, 8))[0])).all()


def test_parts_of_a_step_count_by_their_images() -> None:
    weights = weights_of("adaptive")
    assert isinstance(weights, AdaptiveWeights)
    for rows, loss in (((0,), 6.0), ((1, 2), 3.0)):
        weights.observe(batch_of(0, rows, total=3), {name: torch.tensor(loss) for name in NAMES})
    weights.end_step()
    torch.testing.assert_close(weights.means, torch.full((5,), 4.0, dtype=torch.float64))


def test_what_a_teacher_does_not_see_is_not_counted() -> None:
    weights = weights_of("adaptive")
    assert isinstance(weights, AdaptiveWeights)
    weights.observe(batch_of(0, teachers="abc"), {name: torch.tensor(2.0) for name in NAMES})
    weights.observe(batch_of(0, teachers="ac"), {name: torch.tensor(0.0 if "b" in name else 2.0) for name in NAMES})
    weights.end_step()
    torch.testing.assert_close(weights.means, torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("method", ["adaptive", "teacher_dropping"])
def test_no_gradient_flows_into_weights(method: str) -> None:
    weights = weights_of(method, ramp_steps=0)
    drive(weights, uneven, range(6))
    weights.begin_step(6)
    losses = torch.tensor([3.0, 1.0], requires_grad=True)
    terms = {name: LossTerm(1.0, losses.mean(), lambda: losses) for name in NAMES}
    weighted = weights.weigh(batch_of(6), terms)
    gradients = {name: torch.autograd.grad(loss, losses, retain_graph=True)[0] for name, loss in weighted.items()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient @ losses.detach(), weighted[name].detach())  # linear: weights are constants


def test_a_teacher_without_a_factor_is_in_no_group() -> None:
    recipe = recipe_of("adaptive")
    teachers = [entry.replace(feature_weight=float(entry.name != "b")) for entry in recipe.teachers]
    weights = AdaptiveWeights(recipe.replace(teachers=teachers), HAS_SUMMARY, CPU)
    assert weights.groups == {"features": ["a", "c"], "summary": ["a", "b"]}


def test_a_tap_follows_the_weight_of_its_teachers_main_loss_and_does_not_move_it() -> None:
    weights = weights_of("adaptive", ramp_steps=0)

    def with_taps(step: int) -> dict[str, float]:
        return {**uneven(step), "tap_features/a@1": 50.0 / (1 + step), "tap_summary/b@3": 0.01 * step}

    assert drive(weights, with_taps, range(8)) == drive(weights_of("adaptive", ramp_steps=0), uneven, range(8))
    one = torch.ones(2)
    names = (*NAMES, "tap_features/a@1", "tap_features/c@3", "tap_summary/b@3")
    weighted = weights.weigh(batch_of(8), {name: LossTerm(1.0, one.mean(), lambda: one) for name in names})
    assert weighted["tap_features/a@1"] == weighted["features/a"] != 1
    assert weighted["tap_features/c@3"] == weighted["features/c"] != weighted["features/a"]
    assert weighted["tap_summary/b@3"] == weighted["summary/b"] != weighted["features/b"]


@pytest.mark.parametrize("name", ["features/b", "summary/a"])
def test_the_scale_of_a_loss_changes_no_weight(name: str) -> None:
    plain = drive(weights_of("adaptive"), uneven, range(12))
    scaled = drive(weights_of("adaptive"), times(1000.0, name, uneven), range(12))
    for row, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(values(row), values(other))


def test_weights_of_a_group_have_a_mean_of_1() -> None:
    row = values(drive(weights_of("adaptive"), uneven, range(12))[-1])
    torch.testing.assert_close(row[:3].mean(), row.new_tensor(1.0))
    torch.testing.assert_close(row[3:].mean(), row.new_tensor(1.0))


def test_no_teacher_takes_all() -> None:
    """One teacher is not learned at all, the others at once: AMTML-KD gave everything to CLIP (AM-RADIO, 3.4.1)."""
    losses = {"features/a": 1e-9, "features/b": 1.0, "features/c": 1e-9, "summary/a": 1.0, "summary/b": 1e-9}
    start = dict.fromkeys(losses, 1.0)
    rows = drive(weights_of("adaptive"), lambda step: losses if step > 3 else start, range(12))
    grown = {**losses, "features/b": 1e6}
    rows += drive(weights_of("adaptive"), lambda step: grown if step > 3 else start, range(12))
    assert min(min(row.values()) for row in rows) >= WEIGHT_BOUNDS[0] - 1e-9
    assert max(max(row.values()) for row in rows) <= WEIGHT_BOUNDS[1] + 1e-9
    assert max(row["weight/features/b"] for row in rows[:12]) > 1.2
    assert max(row["weight/features/b"] for row in rows[12:]) > 2


def test_the_teacher_that_is_learned_slowest_gains() -> None:
    slow = {"features/c": 0.99, "summary/b": 0.99}
    losses = dict.fromkeys(("features/a", "features/b", "summary/a"), 0.8) | slow
    row = drive(weights_of("adaptive"), lambda step: {name: rate**step for name, rate in losses.items()}, range(12))[-1]
    assert row["weight/features/c"] > row["weight/features/b"]
    assert row["weight/summary/b"] > row["weight/summary/a"]


def test_priors_go_from_features_to_semantics_to_the_task() -> None:
    assert [prior_at("basic", progress) for progress in (0, 1 / 6, 0.5, 1)] == pytest.approx([0.45, 0.45, 0.3, 0.3])
    assert prior_at("semantic", 1 / 3) == pytest.approx(0.4)
    for progress in (0.0, 0.2, 0.4, 0.7, 1.0):
        assert sum(prior_at(role, progress) for role in PRIORS) == pytest.approx(1)
    equal = dict.fromkeys(uneven(0), 1.0)
    rows = drive(weights_of("adaptive", num_steps=120), lambda _: equal, range(120))
    assert rows[20]["weight/features/a"] > rows[110]["weight/features/a"]
    assert rows[60]["weight/features/b"] > rows[110]["weight/features/b"]
    assert rows[110]["weight/features/c"] > rows[20]["weight/features/c"]


def test_bounds_hold_after_scaling() -> None:
    weights = bounded(torch.tensor([100.0, 1e-6, 1e-6, 0.3, 2.0], dtype=torch.float64))
    assert weights.min() >= WEIGHT_BOUNDS[0]
    assert weights.max() <= WEIGHT_BOUNDS[1]
    torch.testing.assert_close(weights.mean(), weights.new_tensor(1.0))


def test_adaptive_needs_roles() -> None:
    recipe = recipe_of("adaptive")
    teachers = [entry.replace(role=None if entry.name == "b" else entry.role) for entry in recipe.teachers]
    with pytest.raises(RecipeError, match=r"^`teachers.b.role` must be one of \['basic', 'semantic', 'task'\] with"):
        recipe.replace(teachers=teachers)
    recipe_of("teacher_dropping").replace(teachers=teachers)


NUM_IMAGES = 4000


def terms_of(losses: dict[str, Tensor]) -> dict[str, LossTerm]:
    return {name: LossTerm(1.0, each.mean(), lambda each=each: each) for name, each in losses.items()}


def dropping(step: int) -> TeacherDropping:
    weights = weights_of("teacher_dropping")
    assert isinstance(weights, TeacherDropping)
    weights.begin_step(step)
    return weights


def random_losses(num_images: int = NUM_IMAGES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(num_images, generator=generator) for name in NAMES}


def kept(losses: dict[str, Tensor], teachers: str = "abc") -> dict[str, Tensor]:
    """Which images keep a teacher and by how much: the gradient of their number times the loss."""
    leaves = {name: each.clone().requires_grad_() for name, each in losses.items()}
    num_images = len(losses["features/a"])
    batch = batch_of(9, tuple(range(num_images)), num_images, teachers)
    total = torch.stack(list(dropping(9).weigh(batch, terms_of(leaves)).values())).sum()
    return dict(zip(leaves, torch.autograd.grad(num_images * total, list(leaves.values())), strict=True))


def test_the_largest_loss_is_kept_and_others_half_of_the_time() -> None:
    losses = random_losses()
    factors = kept(losses)
    dense = torch.stack([factors[f"features/{name}"] for name in "abc"])
    largest = torch.stack([losses[f"features/{name}"] for name in "abc"]).argmax(0)
    assert (dense.gather(0, largest[None]) > 0).all()
    others = torch.ones_like(dense, dtype=torch.bool).scatter(0, largest[None], False)
    assert (dense[others] > 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_no_teacher_is_always_kept_alone() -> None:
    """Not even one whose loss is always far above the others'."""
    factors = kept({**random_losses(), "features/b": torch.full((NUM_IMAGES,), 1e6)})
    shares = {name: float(factors[f"features/{name}"].mean()) for name in "abc"}
    assert shares == pytest.approx({"a": 0.625, "b": 1.75, "c": 0.625}, abs=0.05)  # (1 + 3 / 2) / 4 each


def test_images_count_alike() -> None:
    factors = kept(random_losses())
    torch.testing.assert_close(sum(factors[f"features/{name}"] for name in "abc"), torch.full((NUM_IMAGES,), 3.0))
    torch.testing.assert_close(sum(factors[f"summary/{name}"] for name in "ab"), torch.full((NUM_IMAGES,), 2.0))


def test_teachers_that_do_not_see_the_images_are_not_kept() -> None:
    losses = random_losses()
    losses["features/c"] = torch.full((NUM_IMAGES,), 9.0)  # would be the largest
    factors = kept(losses, teachers="ab")
    torch.testing.assert_close(factors["features/a"] + factors["features/b"], torch.full((NUM_IMAGES,), 2.0))


def test_parts_draw_what_the_whole_batch_does() -> None:
    losses = random_losses(8)
    whole = dropping(9).weigh(batch_of(9, tuple(range(8)), 8), terms_of(losses))
    weights = dropping(9)
    parts = [
        weights.weigh(batch_of(9, rows, 8), terms_of({name: each[list(rows)] for name, each in losses.items()}))
        for rows in ((4, 5, 6, 7), (0, 1, 2, 3))
    ]
    for name in NAMES:
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name])
    weights.end_step()
    assert sum(weights.scalars()[f"weight/features/{name}"] for name in "abc") == pytest.approx(3)


def test_nothing_is_dropped_before_the_start() -> None:
    losses = random_losses(8)
    weighted = dropping(2).weigh(batch_of(2, tuple(range(8)), 8), terms_of(losses))
    assert all(torch.equal(weighted[name], losses[name].mean()) for name in NAMES)


TWELVE = (
    "schedule={num_steps: 12, warmup_steps: 2}",
    "student.config.drop_path_rate=0",
    "partitions.low.sizes_px=[32]",
    "checkpoints.every_steps=12",
)
RUN_ROLES = ("teachers.semantic.role=semantic", "teachers.segmenter.role=task")
MOVING = [method for method in METHODS if method != "fixed"]


def settings_of(method: str) -> tuple[str, ...]:
    return (*TWELVE, *RUN_ROLES, f"balancing.method={method}")


def saved_weights(output: str, step: int = 12) -> dict[str, torch.Tensor]:
    saved = SavedTensors(Path(output) / "checkpoints" / f"step_{step:08d}", "balancing")
    return {key: saved.read(key) for key in saved.shapes}


NO_SUMMARY = {"semantic": False, "segmenter": False}


class NoWeights:
    """Stands where weights would and fails if a loss is weighed."""

    def begin_step(self, step):
        pass

    observe = end_step = lambda *_: None
    scalars = state_dict = dict


def plain_sum(compare):
    """A loss as it is without any weights but the recipe's factors."""

    def compared(recipe, statistics, weights, contrasts, batch, example, answer, taps):
        assert isinstance(weights, NoWeights)
        assert contrasts is None
        assert not taps
        losses = compare(recipe, statistics, METHODS["fixed"](recipe, NO_SUMMARY, CPU), None, batch, example, answer)
        total = torch.zeros(())
        for entry in recipe.teachers:
            total = total + entry.feature_weight * losses[f"features/{entry.name}"]
            if f"summary/{entry.name}" in losses:
                total = total + entry.summary_weight * losses[f"summary/{entry.name}"]
        return {**losses, "loss": total}

    return compared


def test_recipes_and_registry_name_the_same_methods() -> None:
    assert list(METHODS) == list(get_args(BalancingRecipe.model_fields["method"].annotation))


@pytest.mark.usefixtures("one_thread", "tiny_world")
def test_fixed_is_no_weighting_bit_for_bit(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*settings_of("fixed"), "teachers.semantic.summary_weight=0.3", "teachers.segmenter.feature_weight=2")
    distil(recipe_file, "fixed", *settings)
    assert not Path("fixed/checkpoints/step_00000012/balancing.safetensors").exists()
    monkeypatch.setattr(trainer, "build_weights", lambda *_: NoWeights())
    monkeypatch.setattr(trainer, "compare_with_teachers", plain_sum(trainer.compare_with_teachers))
    distil(recipe_file, "none", *settings)
    assert_same_tensors(last_state("fixed", 12), last_state("none", 12))


@pytest.mark.usefixtures("one_thread", "tiny_world")
@pytest.mark.parametrize("method", MOVING)
def test_every_method_acts_in_12_steps_and_resumes_exactly(recipe_file: str, method: str) -> None:
    settings = (*settings_of(method), "logging.every_steps=3")
    distil(recipe_file, "fixed", *settings, "balancing.method=fixed")
    distil(recipe_file, "whole", *settings)
    assert distil(recipe_file, "parts", *settings, stop_at=7) is None
    distil(recipe_file, "parts", *settings)
    assert_same_tensors(last_state("whole", 12), last_state("parts", 12))
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(last_state("whole", 12)[key], last_state("fixed", 12)[key])
    series = [RunHistory(Path(output, "history.jsonl"), 12).series() for output in ("whole", "parts")]
    assert series[0].keys() == series[1].keys()
    for group in ("features/semantic", "features/segmenter", "summary/semantic"):
        steps, values = series[0][f"weight/{group}"]
        assert (steps, values) == series[1][f"weight/{group}"]
        assert steps == [3, 6, 9, 12]
    moved = [value for name, (_, each) in series[0].items() if name.startswith("weight/features") for value in each]
    assert max(abs(value - 1) for value in moved) > 1e-3
    if method != "teacher_dropping":
        assert_same_tensors(saved_weights("whole"), saved_weights("parts"))


@pytest.mark.usefixtures("one_thread", "tiny_world")
@pytest.mark.parametrize(("method", "others"), [*((method, PACKED) for method in MOVING), ("teacher_dropping", ())])
def test_accumulated_parts_equal_the_whole_batch(recipe_file: str, method: str, others: tuple[str, ...]) -> None:
    settings = (*settings_of(method), *SPLIT_SETTINGS, *others, "schedule.num_steps=6")
    distil(recipe_file, "whole", *settings)
    distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
    whole, parts = last_state("whole", 6), last_state("parts", 6)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


PARTITIONS = (
    "partitions=[{name: low, sizes_px: [32], batch_size: 3},"
    " {name: high, sizes_px: [48], batch_size: 2, teachers: [semantic]}]"
)


@pytest.mark.usefixtures("one_thread", "tiny_world")
@pytest.mark.parametrize("method", MOVING)
def test_partitions_may_have_other_teachers(recipe_file: str, method: str) -> None:
    distil(recipe_file, "run", *settings_of(method), PARTITIONS, "schedule.num_steps=6")
    assert all(torch.isfinite(tensor).all() for tensor in last_state("run", 6).values())
