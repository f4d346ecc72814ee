"""Structures of tensors that travel as one."""

import pickle
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from modeling_radio.training.views.packed_tensors import PackedTensors


class Pair(NamedTuple):
    first: Tensor | None
    second: Tensor


def test_packed_tensors_are_the_same_again_in_one_piece_of_memory() -> None:
    """Odd lengths of narrow types stand before wider ones."""
    structure = [
        {
            (2, 3): Pair(None, torch.tensor([True, False, True])),
            (1, 1): Pair(torch.arange(3).int(), torch.rand(2, 3).T),
        },
        {(4, 5): Pair(torch.empty(0, 2), torch.tensor(2**40))},
        {},
    ]
    packed = pickle.loads(pickle.dumps(PackedTensors.of(structure)))
    (leaves, kind), (expected, expected_kind) = map(tree_flatten, (packed.to(torch.device("cpu")), structure))
    assert kind == expected_kind
    for found, wanted in zip(leaves, expected, strict=True):
        if wanted is None:
            assert found is None
        else:
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
            assert found.untyped_storage().data_ptr() == packed.data.untyped_storage().data_ptr()
    assert PackedTensors.of([]).to(torch.device("cpu")) == []
