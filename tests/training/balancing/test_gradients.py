import torch
from driven_weights import NAMES, batch_of, values, weights_of
from torch import Tensor

from training.balancing.base import WEIGHT_BOUNDS, LossTerm
from training.balancing.gradients import RATE_POWER, GradNorm


SLOPES = {name: 0.5 + place for place, name in enumerate(NAMES)}


def drive(rates: dict[str, float], parts: list[tuple[int, ...]], scale: float = 1.0) -> Tensor:
    """Six steps over four images in parts; each loss falls at its rate and pulls with its slope."""
    weights = weights_of("gradnorm", ramp_steps=0)
    assert isinstance(weights, GradNorm)
    for step in range(6):
        weights.begin_step(step)
        for rows in parts:
            tokens = torch.ones(len(rows), 3, requires_grad=True)
            weights._of_thread.tokens = tokens
            terms = {}
            for name, slope in SLOPES.items():
                level = rates[name] ** step * (scale if name == NAMES[0] else 1.0)
                loss = level * (1 + slope * (tokens.mean() - 1))
                terms[name] = LossTerm(1.0, loss, lambda loss=loss: loss[None], torch.mean)
            batch = batch_of(step, rows, 4)
            weights.weigh(batch, terms)
            weights.observe(batch, {name: term.value for name, term in terms.items()})
        weights.end_step()
    return values(weights.scalars())


WHOLE = [(0, 1, 2, 3)]


def test_losses_that_are_learned_alike_pull_alike() -> None:
    weights = drive(dict.fromkeys(NAMES, 0.9), WHOLE)
    pulls = weights * torch.tensor(list(SLOPES.values()), dtype=torch.float64)
    for group in (pulls[:3], pulls[3:]):
        torch.testing.assert_close(group, group.mean().expand_as(group), rtol=1e-5, atol=1e-6)


def test_what_is_learned_slowly_pulls_harder() -> None:
    rates = {name: 0.85 + 0.03 * place for place, name in enumerate(NAMES)}
    weights = drive(rates, WHOLE)
    at_start, now = 1, 4  # the last steps before the start, and before the last weights
    levels = torch.tensor([rate ** (now - at_start) for rate in rates.values()], dtype=torch.float64)
    slopes = [SLOPES[name] * rates[name] ** now for name in NAMES]
    pulls = weights * torch.tensor(slopes, dtype=torch.float64)
    expected = levels**RATE_POWER
    torch.testing.assert_close(pulls[:3] / pulls[0], expected[:3] / expected[0], rtol=1e-5, atol=1e-6)


def test_the_scale_of_a_loss_cancels_in_its_pull() -> None:
    plain, scaled = (drive(dict.fromkeys(NAMES, 0.9), WHOLE, scale) for scale in (1.0, 2.0))
    torch.testing.assert_close(2 * scaled[0] / scaled[1], plain[0] / plain[1], rtol=1e-5, atol=1e-6)


def test_parts_pull_as_the_whole_batch_does() -> None:
    rates = {name: 0.5 + 0.1 * place for place, name in enumerate(NAMES)}
    torch.testing.assert_close(drive(rates, [(2, 3), (0, 1)]), drive(rates, WHOLE), rtol=1e-5, atol=1e-6)


def test_losses_of_one_group_change_no_weight_of_the_other() -> None:
    """Or summaries would swallow the dense losses (PHI-S, A.8.1)."""
    rates = dict.fromkeys(NAMES, 0.9)
    plain, changed = drive(rates, WHOLE), drive({**rates, "summary/a": 0.5}, WHOLE)
    torch.testing.assert_close(changed[:3], plain[:3], rtol=1e-9, atol=0)
    assert (changed[3:] - plain[3:]).abs().min() > 0.1
    for weights in (plain, changed):
        for group in (weights[:3], weights[3:]):
            torch.testing.assert_close(group.mean(), group.new_tensor(1.0))


def test_a_loss_that_hardly_pulls_does_not_take_its_group() -> None:
    weights = drive(dict.fromkeys(NAMES, 0.9), WHOLE, scale=1e-6)
    assert weights.min() >= WEIGHT_BOUNDS[0] - 1e-9
