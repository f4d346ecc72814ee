"""Comparisons of models that several test files make.

Copies of equal weights do not always give equal bits: where the weights lie in memory can decide a kernel's path. So
weights are compared bit by bit, and outputs to 1e-6.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    """Compare parameters and buffers by name and bit by bit."""
    actual_state, expected_state = actual.state_dict(), expected.state_dict()
    assert actual_state.keys() == expected_state.keys()
    for name, weight in expected_state.items():
        assert torch.equal(actual_state[name], weight), name


def assert_close_by_name(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    what: str = "",
) -> None:
    """Compare tensors that have the same names; what fails says which one differs, and of what."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{what} {name}: {text}".strip()
        )
