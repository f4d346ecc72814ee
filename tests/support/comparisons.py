"""Comparisons of models that several test files make.

Copies of equal weights do not always give equal bits: where the weights lie in memory can decide a kernel's path. So
weights are compared bit by bit, and outputs to 1e-6.
"""

import torch
from torch import nn


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    """Compare parameters and buffers by name and bit by bit."""
    actual_state, expected_state = actual.state_dict(), expected.state_dict()
    assert actual_state.keys() == expected_state.keys()
    for name, weight in expected_state.items():
        assert torch.equal(actual_state[name], weight), name
