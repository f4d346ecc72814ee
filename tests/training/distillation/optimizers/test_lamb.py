"""LAMB beside timm's, which is an implementation of its own."""

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from training.distillation.optimizers import Lamb


SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}
SHAPES = [(6, 5), (3, 4), (7,), (2, 2)]


def build(lamb: type, decay: float, **options) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return parameters, lamb([{"params": parameters, "weight_decay": decay, **options}], **SETTINGS)


def step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number + 1)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


class TimmLamb(timm.optim.Lamb):
    def __init__(self, groups: list[dict], **settings) -> None:
        super().__init__(groups, max_grad_norm=None, **settings)


@pytest.mark.parametrize(("decay", "use_trust_ratio"), [(0.1, True), (0.0, False)])
def test_it_is_timms(decay: float, use_trust_ratio: bool) -> None:
    ours, our_optimizer = build(Lamb, decay, use_trust_ratio=use_trust_ratio)
    theirs, their_optimizer = build(TimmLamb, decay)
    for number in range(10):
        step(ours, our_optimizer, number)
        step(theirs, their_optimizer, number)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0])
def test_without_a_trust_ratio_the_size_of_a_value_does_not_matter(value: float) -> None:
    """As for spectral scales, which would stand still near zero and shrink elsewhere."""
    scale = nn.Parameter(torch.full((1, 1), value))
    optimizer = Lamb([{"params": [scale], "weight_decay": 0.02, "use_trust_ratio": False}], **SETTINGS)
    scale.grad = torch.full((1, 1), 0.3)
    optimizer.step()
    assert scale.item() == pytest.approx(value - 1e-2 * (1 + 0.02 * value), rel=1e-5)


def test_a_weight_of_zero_moves_and_a_gradient_of_zero_does_no_harm() -> None:
    weight, idle = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    optimizer = Lamb([{"params": [weight, idle], "weight_decay": 0.1, "use_trust_ratio": True}], **SETTINGS)
    weight.grad, idle.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -1e-2))
    assert torch.equal(idle, torch.zeros(2, 2))


def test_steps_are_counted_for_each_parameter() -> None:
    """timm's counts them for the group: what joins late would take steps several times as long."""

    def last_moves(lamb: type, **options) -> list[Tensor]:
        parameters, optimizer = build(lamb, 0.1, **options)
        for number in range(20):
            step(parameters[:2], optimizer, number)
        before = [parameter.detach().clone() for parameter in parameters]
        step(parameters, optimizer, 20)
        return [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]

    ours = last_moves(Lamb, use_trust_ratio=False)
    rms = [move.square().mean().sqrt().item() for move in ours[2:]]
    assert rms == pytest.approx([1e-2, 1e-2], rel=0.2)  # the decay's part is small
    parameters, optimizer = build(TimmLamb, 0.1)
    del parameters[:2]
    optimizer.param_groups[0]["params"] = parameters
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(21)
    gradients = [torch.randn(shape, generator=generator) for shape in SHAPES][2:]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    expected = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    for our, their in zip(last_moves(Lamb, use_trust_ratio=True)[2:], expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)
