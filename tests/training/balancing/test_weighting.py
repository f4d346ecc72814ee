"""Weights for losses that a test writes down, and in a run of 12 steps."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state
from torch import Tensor

from modeling_radio.training.balancing.weighting import (
    PRIORS,
    WEIGHT_BOUNDS,
    AdaptiveWeights,
    bounded,
    build_weights,
    prior_at,
)
from modeling_radio.training.distillation.checkpoints import SavedTensors
from modeling_radio.training.distillation.tracking import RunHistory
from modeling_radio.training.losses.terms import LossTerm
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.teachers.outputs import TeacherWidths
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid, ImageShape


ROLES = {"a": "basic", "b": "semantic", "c": "task"}
HAS_SUMMARY = {"a": True, "b": True, "c": False}
NOTHING = Example([], {})
NAMES = ("features/a", "features/b", "features/c", "summary/a", "summary/b")

Losses = Callable[[int], Mapping[str, float]]


def recipe_of(num_steps: int = 12, method: str = "adaptive", **balancing: int) -> Recipe:
    teachers = [{"name": name, "kind": "k", "role": role} for name, role in ROLES.items()]
    schedule = {"num_steps": num_steps, "warmup_steps": 2}
    return small_recipe(teachers=teachers, schedule=schedule, balancing={"method": method, **balancing})


def weights_of(num_steps: int = 12, **balancing: int) -> AdaptiveWeights:
    return AdaptiveWeights(recipe_of(num_steps, **balancing), HAS_SUMMARY, torch.device("cpu"))


def batch_of(step: int, rows: tuple[int, ...] = (0, 1), total: int = 2, teachers: str = "abc") -> PlannedBatch:
    shapes = (ImageShape(Grid(2, 2), Grid(2, 2)),) * len(rows)
    return PlannedBatch(0, step, "low", shapes, rows, rows, total, 1.0, tuple(teachers))


def drive(weights: AdaptiveWeights, losses: Losses, steps: range) -> list[dict[str, float]]:
    """Show losses over some steps; return the weights of each."""
    rows = []
    for step in steps:
        weights.begin_step(step, ())
        weights.see(batch_of(step), NOTHING, {name: torch.tensor(loss) for name, loss in losses(step).items()})
        weights.end_step({}, is_skipped=False)
        rows.append(weights.scalars())
    return rows


def uneven(step: int) -> dict[str, float]:
    """Losses that fall at different speeds."""
    return {name: 2.0 * (0.95 - 0.1 * index) ** step for index, name in enumerate(NAMES)}


def values(row: Mapping[str, float]) -> Tensor:
    return torch.tensor(list(row.values()), dtype=torch.float64)


def terms_of(losses: Mapping[str, Tensor]) -> dict[str, LossTerm]:
    return {
        name: LossTerm(1.0, each.mean(), name.partition("/")[0].removeprefix("tap_")) for name, each in losses.items()
    }


def test_unset_times_follow_the_length_of_the_run() -> None:
    recipe = recipe_of()
    assert recipe.balancing_times() == (2, 1, 1)
    assert recipe_of(10_000).balancing_times() == (2, 100, 1000)
    assert recipe_of(start_step=5, period_steps=3, ramp_steps=0).balancing_times() == (5, 3, 0)
    long_warmup = recipe.replace(schedule=recipe.schedule.replace(warmup_steps=500))
    assert long_warmup.balancing_times().start_step == 3
    for frozen_steps, start_step in ((6, 6), (12, 2)):  # a frozen trunk learns nothing
        optimizer = recipe.optimizer.replace(trunk_frozen_steps=frozen_steps)
        assert recipe.replace(optimizer=optimizer).balancing_times().start_step == start_step


def test_fixed_weights_are_no_hook() -> None:
    shapes = {name: TeacherWidths(None, 4) for name in ROLES}
    assert build_weights(recipe_of(method="fixed"), shapes, torch.device("cpu")) is None
    assert build_weights(recipe_of(), shapes, torch.device("cpu")).groups == {"features": ["a", "b", "c"]}


def test_weights_start_at_1_and_have_a_mean_of_1_in_each_group() -> None:
    rows = drive(weights_of(), uneven, range(12))
    assert all((values(row) == 1).all() for row in rows[:3])  # the ramp begins at step 2
    assert list(rows[0]) == [f"weight/{name}" for name in NAMES]
    last = values(rows[-1])
    assert (last - 1).abs().max() > 0.01
    torch.testing.assert_close(torch.stack([last[:3].mean(), last[3:].mean()]), torch.ones(2, dtype=torch.float64))


def test_losses_of_one_group_change_no_weight_of_the_other() -> None:
    """Otherwise summaries would swallow the dense losses (PHI-S, A.8.1)."""
    plain = values(drive(weights_of(), uneven, range(12))[-1])
    changed = values(drive(weights_of(), lambda step: {**uneven(step), "summary/a": 5.0 + step}, range(12))[-1])
    torch.testing.assert_close(changed[:3], plain[:3], rtol=1e-12, atol=0)
    assert (changed[3] - plain[3]).abs() > 1e-3


@pytest.mark.parametrize("name", ["features/b", "summary/a"])
def test_the_scale_of_a_loss_changes_no_weight(name: str) -> None:
    def scaled(step: int) -> dict[str, float]:
        return {own: value * (1000 if own == name else 1) for own, value in uneven(step).items()}

    rows = (drive(weights_of(), losses, range(12)) for losses in (uneven, scaled))
    for row, other in zip(*rows, strict=True):
        torch.testing.assert_close(values(row), values(other))


def test_a_ramp_spreads_the_change_over_its_steps() -> None:
    fast, slow = (drive(weights_of(ramp_steps=steps, period_steps=99), uneven, range(12))[4] for steps in (0, 4))
    torch.testing.assert_close(values(slow) - 1, (values(fast) - 1) / 2)


def test_step_with_a_non_finite_loss_changes_nothing() -> None:
    weights = weights_of()
    drive(weights, uneven, range(6))
    before = weights.means.clone(), weights.num_seen.clone()
    drive(weights, lambda step: {**uneven(step), "features/a": float("nan")}, range(6, 7))
    assert torch.equal(weights.means, before[0])
    assert torch.equal(weights.num_seen, before[1])
    assert torch.isfinite(values(drive(weights, uneven, range(7, 8))[0])).all()


def test_parts_count_by_their_images_and_teachers_by_what_they_see() -> None:
    weights = weights_of()
    for rows, loss, teachers in (((0,), 6.0, "abc"), ((1, 2), 3.0, "abc"), ((3,), 9.0, "ac")):
        losses = {name: torch.tensor(loss if name[-1] in teachers else 0.0) for name in NAMES}
        weights.see(batch_of(0, rows, total=4, teachers=teachers), NOTHING, losses)
    weights.end_step({}, is_skipped=False)
    assert weights.means.tolist() == pytest.approx([5.25 if name[-1] in "ac" else 4.0 for name in NAMES])


def test_no_gradient_flows_into_weights() -> None:
    weights = weights_of(ramp_steps=0)
    drive(weights, uneven, range(6))
    weights.begin_step(6, ())
    losses = torch.tensor([3.0, 1.0], requires_grad=True)
    for weighted in weights.weigh(batch_of(6), terms_of(dict.fromkeys(NAMES, losses))).values():
        (gradient,) = torch.autograd.grad(weighted, losses, retain_graph=True)
        torch.testing.assert_close(gradient @ losses.detach(), weighted.detach())  # linear: weights are constants


def test_a_tap_has_the_weight_of_its_teachers_main_loss_and_does_not_move_it() -> None:
    weights = weights_of(ramp_steps=0)

    def with_taps(step: int) -> dict[str, float]:
        return {**uneven(step), "tap_features/a@1": 50.0 / (1 + step), "tap_summary/b@3": 0.01 * step}

    assert drive(weights, with_taps, range(8)) == drive(weights_of(ramp_steps=0), uneven, range(8))
    names = (*NAMES, "tap_features/a@1", "tap_features/c@3", "tap_summary/b@3")
    weighted = weights.weigh(batch_of(8), terms_of(dict.fromkeys(names, torch.ones(2))))
    assert weighted["tap_features/a@1"] == weighted["features/a"] != 1
    assert weighted["tap_features/c@3"] == weighted["features/c"] != weighted["features/a"]
    assert weighted["tap_summary/b@3"] == weighted["summary/b"] != weighted["features/b"]


def test_no_teacher_takes_all() -> None:
    """One teacher is not learned at all, the others at once: AMTML-KD gave everything to CLIP (AM-RADIO, 3.4.1)."""
    losses = {"features/a": 1e-9, "features/b": 1.0, "features/c": 1e-9, "summary/a": 1.0, "summary/b": 1e-9}
    for loss, gain in ((1.0, 1.2), (1e6, 2)):
        late = {**losses, "features/b": loss}
        rows = drive(weights_of(), lambda step, late=late: late if step > 3 else dict.fromkeys(late, 1.0), range(12))
        assert min(min(row.values()) for row in rows) >= WEIGHT_BOUNDS[0] - 1e-9
        assert gain < max(row["weight/features/b"] for row in rows) <= WEIGHT_BOUNDS[1] + 1e-9
    weights = bounded(torch.tensor([100.0, 1e-6, 1e-6, 0.3, 2.0], dtype=torch.float64))
    assert WEIGHT_BOUNDS[0] <= weights.min() < weights.max() <= WEIGHT_BOUNDS[1]
    torch.testing.assert_close(weights.mean(), weights.new_tensor(1.0))


def test_the_teacher_that_is_learned_slowest_gains() -> None:
    rates = {name: 0.99 if name in ("features/c", "summary/b") else 0.8 for name in NAMES}
    row = drive(weights_of(), lambda step: {name: rate**step for name, rate in rates.items()}, range(12))[-1]
    assert row["weight/features/c"] > row["weight/features/b"]
    assert row["weight/summary/b"] > row["weight/summary/a"]


def test_priors_go_from_features_to_semantics_to_the_task() -> None:
    assert [prior_at("basic", progress) for progress in (0, 1 / 6, 0.5, 1)] == pytest.approx([0.45, 0.45, 0.3, 0.3])
    assert prior_at("semantic", 1 / 3) == pytest.approx(0.4)
    for progress in (0.0, 0.2, 0.4, 0.7, 1.0):
        assert sum(prior_at(role, progress) for role in PRIORS) == pytest.approx(1)
    rows = drive(weights_of(num_steps=120), lambda _: dict.fromkeys(NAMES, 1.0), range(120))
    assert rows[20]["weight/features/a"] > rows[110]["weight/features/a"]
    assert rows[60]["weight/features/b"] > rows[110]["weight/features/b"]
    assert rows[110]["weight/features/c"] > rows[20]["weight/features/c"]


def test_adaptive_alone_needs_roles() -> None:
    recipe = recipe_of()
    teachers = [entry.replace(role=None if entry.name == "b" else entry.role) for entry in recipe.teachers]
    with pytest.raises(RecipeError, match=r"`teachers\.b\.role`"):
        recipe.replace(teachers=teachers)
    recipe_of(method="fixed").replace(teachers=teachers)


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def settings(self, num_steps: int = 12) -> tuple[str, ...]:
        return (
            f"schedule={{num_steps: {num_steps}, warmup_steps: 2}}",
            "student.config.drop_path_rate=0",
            "partitions.low.sizes_px=[32]",
            "checkpoints.every_steps=12",
            "teachers.semantic.role=semantic",
            "teachers.segmenter.role=task",
            "balancing.method=adaptive",
        )

    def test_weights_act_in_12_steps_and_resume_exactly(self, recipe_file: str) -> None:
        settings = (*self.settings(), "logging.every_steps=3")
        distil(recipe_file, "fixed", *settings, "balancing.method=fixed")
        distil(recipe_file, "whole", *settings)
        assert distil(recipe_file, "parts", *settings, stop_at=7) is None
        distil(recipe_file, "parts", *settings)
        assert_same_tensors(last_state("whole", 12), last_state("parts", 12))
        key = "student/radio_model.model.blocks.0.attn.qkv.weight"
        assert not torch.equal(last_state("whole", 12)[key], last_state("fixed", 12)[key])
        assert not Path("fixed/checkpoints/step_00000012/balancing.safetensors").exists()
        whole, parts = (RunHistory(Path(output, "history.jsonl"), 12).series() for output in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for group in ("features/semantic", "features/segmenter", "summary/semantic"):
            steps, weights = whole[f"weight/{group}"]
            assert (steps, weights) == parts[f"weight/{group}"]
            assert steps == [3, 6, 9, 12]
        moved = [value for name, (_, each) in whole.items() if name.startswith("weight/features") for value in each]
        assert max(abs(value - 1) for value in moved) > 1e-3
        saved = [SavedTensors(Path(run, "checkpoints/step_00000012"), "balancing") for run in ("whole", "parts")]
        assert_same_tensors(*({key: each.read(key) for key in each.shapes} for each in saved))

    def test_accumulated_parts_equal_the_whole_batch(self, recipe_file: str) -> None:
        settings = (*self.settings(6), *SPLIT_SETTINGS, *PACKED)
        distil(recipe_file, "whole", *settings)
        distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
        whole, parts = last_state("whole", 6), last_state("parts", 6)
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)
