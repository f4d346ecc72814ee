import torch
from torch import nn

from training.distillation.optimizers import advance_moments


def test_parameters_are_yielded_by_their_number_of_steps() -> None:
    early, late, idle = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.SGD([early, late, idle], lr=1)
    group = {"params": [early, late, idle], "betas": (0.5, 0.75)}
    early.grad = torch.tensor([1.0, -2.0])
    (only,) = advance_moments(optimizer, group)
    assert only.step == 1
    late.grad = torch.tensor([3.0, 4.0])
    found = {moments.step: moments for moments in advance_moments(optimizer, group)}
    (first,), (second,) = found[2].parameters, found[1].parameters
    assert first is early
    assert second is late
    assert idle not in optimizer.state
    torch.testing.assert_close(found[2].first[0], torch.tensor([0.75, -1.5]))
    torch.testing.assert_close(found[2].second[0], torch.tensor([0.4375, 1.75]))
    # The first step of each goes along the signs of its gradient, whatever the decays.
    torch.testing.assert_close(found[1].directions((0.5, 0.75), 0.0)[0], torch.ones(2))
