import pytest
import torch
from driven_weights import drive, recipe_of, times, uneven, values, weights_of

from training.balancing.base import WEIGHT_BOUNDS, bounded
from training.balancing.progress import PRIORS, prior_at
from training.recipe import RecipeError


@pytest.mark.parametrize("method", ["adaptive", "dwa"])
@pytest.mark.parametrize("name", ["features/b", "summary/a"])
def test_the_scale_of_a_loss_changes_no_weight(method: str, name: str) -> None:
    plain = drive(weights_of(method), uneven, range(12))
    scaled = drive(weights_of(method), times(1000.0, name, uneven), range(12))
    for row, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(values(row), values(other))


@pytest.mark.parametrize("method", ["adaptive", "dwa"])
def test_weights_of_a_group_have_a_mean_of_1(method: str) -> None:
    row = values(drive(weights_of(method), uneven, range(12))[-1])
    torch.testing.assert_close(row[:3].mean(), row.new_tensor(1.0))
    torch.testing.assert_close(row[3:].mean(), row.new_tensor(1.0))


@pytest.mark.parametrize("method", ["adaptive", "dwa"])
def test_no_teacher_takes_all(method: str) -> None:
    """One teacher is not learned at all, the others at once: AMTML-KD gave everything to CLIP (AM-RADIO, 3.4.1)."""
    losses = {"features/a": 1e-9, "features/b": 1.0, "features/c": 1e-9, "summary/a": 1.0, "summary/b": 1e-9}
    start = dict.fromkeys(losses, 1.0)
    rows = drive(weights_of(method), lambda step: losses if step > 3 else start, range(12))
    grown = {**losses, "features/b": 1e6}
    rows += drive(weights_of(method), lambda step: grown if step > 3 else start, range(12))
    assert min(min(row.values()) for row in rows) >= WEIGHT_BOUNDS[0] - 1e-9
    assert max(max(row.values()) for row in rows) <= WEIGHT_BOUNDS[1] + 1e-9
    assert max(row["weight/features/b"] for row in rows[:12]) > 1.2
    assert max(row["weight/features/b"] for row in rows[12:]) > 2


def test_the_teacher_that_is_learned_slowest_gains() -> None:
    slow = {"features/c": 0.99, "summary/b": 0.99}
    losses = dict.fromkeys(("features/a", "features/b", "summary/a"), 0.8) | slow
    for method in ("adaptive", "dwa"):
        row = drive(weights_of(method), lambda step: {name: rate**step for name, rate in losses.items()}, range(12))[-1]
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
    recipe_of("dwa").replace(teachers=teachers)


def test_dwa_is_its_formula() -> None:
    losses = [dict.fromkeys(uneven(0), 1.0), {**dict.fromkeys(uneven(0), 1.0), "features/a": 0.5}]
    weights = weights_of("dwa", start_step=0, ramp_steps=0)
    row = values(drive(weights, lambda step: losses[min(step, 1)], range(3))[-1])
    expected = 3 * torch.softmax(torch.tensor([0.25, 0.5, 0.5], dtype=torch.float64), 0)
    torch.testing.assert_close(row[:3], expected)
