from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from two_forks import run_two_forks

from modeling_radio.core.ranks import TIMEOUT
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.student.sharding import (
    build_accelerator,
    first_row,
    gather_whole,
    local_parts,
    own_part,
    sum_over_shards,
    whole_norm,
    whole_norms,
)


def test_copies_of_the_student_hold_their_gradients_once_and_their_own_buffers(tmp_path: Path) -> None:
    """As memory is planned: where they are exchanged, not beside it. Running statistics are averaged apart."""
    accelerator = build_accelerator(load_recipe("demo"), tmp_path)
    assert accelerator.ddp_handler is not None
    assert accelerator.ddp_handler.to_kwargs() == {"gradient_as_bucket_view": True, "broadcast_buffers": False}


def test_ranks_wait_long_for_one_that_works_alone(tmp_path: Path) -> None:
    accelerator = build_accelerator(load_recipe("demo"), tmp_path)
    assert accelerator.init_handler is not None
    assert accelerator.init_handler.to_kwargs() == {"timeout": TIMEOUT}


def test_a_whole_tensor_is_its_own_part():
    tensor = torch.arange(6.0).view(3, 2)
    assert first_row(tensor) == 0
    assert local_parts([tensor])[0] is tensor
    assert sum_over_shards([tensor], tensor)[0] is tensor
    assert gather_whole(tensor, tensor) is tensor
    assert own_part(tensor, tensor) is tensor
    assert torch.equal(whole_norms([tensor], [tensor]), whole_norm(tensor.norm()).view(1))


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_parts_of_two_ranks_make_the_whole(rows, tmp_path):
    whole = torch.arange(3.0 * rows).view(rows, 3)

    def check():
        mesh = init_device_mesh("cpu", (2,))
        sharded = distribute_tensor(whole, mesh, [Shard(0)])
        (part,) = local_parts([sharded])
        first = first_row(sharded)
        assert torch.equal(part, whole[first : first + len(part)])
        assert torch.equal(own_part(whole, sharded), part)
        assert torch.equal(gather_whole(part, sharded), whole)
        ones = torch.ones(2, 2)
        totals = sum_over_shards([part.sum(0), ones], sharded)
        assert torch.equal(totals[0], whole.sum(0))
        assert torch.equal(totals[1], 2 * ones)
        torch.testing.assert_close(whole_norms([part], [sharded]), whole.norm().view(1))
        torch.testing.assert_close(whole_norm(sharded.norm()), whole.norm())
        copied = distribute_tensor(whole, mesh, [Replicate()])
        assert first_row(copied) == 0
        assert torch.equal(sum_over_shards([ones], copied)[0], ones)  # ranks with a copy each add nothing

    run_two_forks(check, tmp_path)
