import pytest
import torch
from driven_weights import drive, times, uneven, values, weights_of


def test_ada_loss_makes_every_weighted_loss_1() -> None:
    losses = {name: 2.0 + place for place, name in enumerate(uneven(0))}
    row = values(drive(weights_of("ada_loss"), lambda _: losses, range(12))[-1])
    torch.testing.assert_close(row * values(losses), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("method", ["ada_loss", "uncertainty"])
def test_a_loss_that_vanishes_takes_no_more_than_its_share(method: str) -> None:
    losses = {**dict.fromkeys(uneven(0), 1.0), "features/a": 1e-9}
    weights = weights_of(method, num_steps=300, period_steps=1)
    weighted = values(drive(weights, lambda _: losses, range(300))[-1]) * values(losses)
    assert weighted[1:].min() > 0.5  # the others still pull
    assert weighted.max() < 1 + 1e-6


def test_the_scale_of_a_loss_cancels_in_the_weighted_loss() -> None:
    scaled = times(1000.0, "features/b", uneven)
    rows = drive(weights_of("ada_loss"), uneven, range(12)), drive(weights_of("ada_loss"), scaled, range(12))
    for step in range(4, 12):
        torch.testing.assert_close(
            values(rows[0][step]) * values(uneven(step)), values(rows[1][step]) * values(scaled(step))
        )


def test_uncertainty_settles_where_its_objective_is_least() -> None:
    losses = {name: 0.5 + place for place, name in enumerate(uneven(0))}
    row = values(drive(weights_of("uncertainty", num_steps=300, period_steps=1), lambda _: losses, range(300))[-1])
    log_variances = (-row.log()).requires_grad_()
    objective = (-log_variances).exp() @ values(losses) + torch.nn.functional.softplus(log_variances).sum()
    assert torch.autograd.grad(objective, log_variances)[0].abs().max() < 1e-3


def test_a_huge_loss_does_not_throw_uncertainty_away() -> None:
    losses = {**dict.fromkeys(uneven(0), 1.0), "features/a": 1e6}
    row = drive(weights_of("uncertainty"), lambda _: losses, range(12))[-1]
    assert 0.3 < row["weight/features/a"] < 1
    assert row["weight/features/a"] == pytest.approx(min(row.values()))


def test_uncertainty_waits_for_losses() -> None:
    weights = weights_of("uncertainty", start_step=0)
    weights.end_period(0)
    assert torch.equal(weights.log_variances, torch.zeros(5, dtype=weights.log_variances.dtype))
