import pytest
import torch
from driven_weights import NAMES, batch_of, drive, recipe_of, uneven, values, weights_of

from training.balancing.base import GroupWeights, LossTerm


def test_times_that_are_unset_follow_the_length_of_the_run() -> None:
    assert recipe_of("dwa").balancing_times() == (2, 1, 1)
    assert recipe_of("dwa", 10_000).balancing_times() == (2, 100, 1000)
    assert recipe_of("dwa", start_step=5, period_steps=3, ramp_steps=0).balancing_times() == (5, 3, 0)


def test_a_warm_up_longer_than_the_run_leaves_time_for_weights() -> None:
    schedule = recipe_of("dwa").schedule.replace(warmup_steps=500)
    assert recipe_of("dwa").replace(schedule=schedule).balancing_times().start_step == 3


@pytest.mark.parametrize(("frozen_steps", "start_step"), [(0, 2), (6, 6), (12, 2)])
def test_losses_are_not_looked_at_before_a_frozen_trunk_learns(frozen_steps: int, start_step: int) -> None:
    recipe = recipe_of("dwa")
    frozen = recipe.replace(optimizer=recipe.optimizer.replace(trunk_frozen_steps=frozen_steps))
    assert frozen.balancing_times().start_step == start_step


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty"])
def test_weights_are_1_up_to_the_start_and_move_after_it(method: str) -> None:
    rows = drive(weights_of(method), uneven, range(12))
    assert all((values(row) == 1).all() for row in rows[:3])  # the ramp begins at step 2
    assert not torch.allclose(values(rows[-1]), torch.ones(5, dtype=torch.float64), atol=0.01)
    assert list(rows[0]) == [f"weight/{name}" for name in NAMES]


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty"])
def test_losses_of_one_group_change_no_weight_of_the_other(method: str) -> None:
    """Or summaries would swallow the dense losses (PHI-S, A.8.1)."""
    plain = drive(weights_of(method), uneven, range(12))[-1]
    changed = drive(weights_of(method), lambda step: {**uneven(step), "summary/a": 5.0 + step}, range(12))[-1]
    for name in NAMES[:3]:
        assert changed[f"weight/{name}"] == pytest.approx(plain[f"weight/{name}"], rel=1e-12)
    assert changed["weight/summary/a"] != pytest.approx(plain["weight/summary/a"], rel=1e-3)


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty"])
def test_a_ramp_spreads_the_change_over_its_steps(method: str) -> None:
    fast = drive(weights_of(method, ramp_steps=0, period_steps=99), uneven, range(12))[4]
    slow = drive(weights_of(method, ramp_steps=4, period_steps=99), uneven, range(12))[4]
    torch.testing.assert_close(values(slow) - 1, (values(fast) - 1) / 2)


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty"])
@pytest.mark.parametrize("period", [1, 3])
def test_weights_go_on_from_saved_ones(method: str, period: int) -> None:
    whole = drive(weights_of(method, period_steps=period), uneven, range(12))
    first, second = (weights_of(method, period_steps=period) for _ in range(2))
    drive(first, uneven, range(7))
    second.load_state_dict(first.state_dict())
    assert drive(second, uneven, range(7, 12)) == whole[7:]


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty"])
def test_a_step_that_is_not_finite_changes_nothing(method: str) -> None:
    weights = weights_of(method)
    drive(weights, uneven, range(6))
    before = {name: tensor.clone() for name, tensor in weights.state_dict().items() if name in ("means", "num_seen")}
    drive(weights, lambda step: {**uneven(step), "features/a": float("nan")}, range(6, 7))
    for name, tensor in before.items():
        assert torch.equal(weights.state_dict()[name], tensor)
    assert torch.isfinite(values(drive(weights, uneven, range(7, 8))[0])).all()


def test_parts_of_a_step_count_by_their_images() -> None:
    weights = weights_of("ada_loss")
    assert isinstance(weights, GroupWeights)
    for rows, loss in (((0,), 6.0), ((1, 2), 3.0)):
        weights.observe(batch_of(0, rows, total=3), {name: torch.tensor(loss) for name in NAMES})
    weights.end_step()
    torch.testing.assert_close(weights.means, torch.full((5,), 4.0, dtype=torch.float64))


def test_what_a_teacher_does_not_see_is_not_counted() -> None:
    weights = weights_of("ada_loss")
    assert isinstance(weights, GroupWeights)
    weights.observe(batch_of(0, teachers="abc"), {name: torch.tensor(2.0) for name in NAMES})
    weights.observe(batch_of(0, teachers="ac"), {name: torch.tensor(0.0 if "b" in name else 2.0) for name in NAMES})
    weights.end_step()
    torch.testing.assert_close(weights.means, torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("method", ["adaptive", "ada_loss", "dwa", "uncertainty", "teacher_dropping"])
def test_no_gradient_flows_into_weights(method: str) -> None:
    weights = weights_of(method, ramp_steps=0)
    drive(weights, uneven, range(6))
    weights.begin_step(6)
    losses = torch.tensor([3.0, 1.0], requires_grad=True)
    terms = {name: LossTerm(1.0, losses.mean(), lambda: losses, torch.mean) for name in NAMES}
    weighted = weights.weigh(batch_of(6), terms)
    gradients = {name: torch.autograd.grad(loss, losses, retain_graph=True)[0] for name, loss in weighted.items()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient @ losses.detach(), weighted[name].detach())  # linear: weights are constants


def test_a_teacher_without_a_factor_is_in_no_group() -> None:
    recipe = recipe_of("dwa")
    teachers = [entry.replace(feature_weight=float(entry.name != "b")) for entry in recipe.teachers]
    weights = GroupWeights(recipe.replace(teachers=teachers), {"a": True, "b": True, "c": False}, torch.device("cpu"))
    assert weights.groups == {"features": ["a", "c"], "summary": ["a", "b"]}


@pytest.mark.parametrize("method", ["ada_loss", "dwa"])
def test_a_tap_follows_the_weight_of_its_teachers_main_loss_and_does_not_move_it(method: str) -> None:
    weights = weights_of(method, ramp_steps=0)

    def with_taps(step: int) -> dict[str, float]:
        return {**uneven(step), "tap_features/a@1": 50.0 / (1 + step), "tap_summary/b@3": 0.01 * step}

    assert drive(weights, with_taps, range(8)) == drive(weights_of(method, ramp_steps=0), uneven, range(8))
    one = torch.ones(2)
    names = (*NAMES, "tap_features/a@1", "tap_features/c@3", "tap_summary/b@3")
    weighted = weights.weigh(batch_of(8), {name: LossTerm(1.0, one.mean(), lambda: one, torch.mean) for name in names})
    assert weighted["tap_features/a@1"] == weighted["features/a"] != 1
    assert weighted["tap_features/c@3"] == weighted["features/c"] != weighted["features/a"]
    assert weighted["tap_summary/b@3"] == weighted["summary/b"] != weighted["features/b"]
