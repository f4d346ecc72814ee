"""A teacher whose blocks are sharded over two ranks."""

from pathlib import Path

import pytest
import torch
from deep_teacher import DeepTeacher, bytes_of
from torch import distributed
from two_forks import run_two_forks

from modeling_radio.training.teachers.sharded import shard_blocks


CPU = torch.device("cpu")


def test_ranks_with_different_numbers_of_sizes_get_what_a_whole_teacher_returns(tmp_path: Path) -> None:
    def check() -> None:
        whole, sharded = DeepTeacher("deep"), DeepTeacher("deep")
        group = distributed.group.WORLD
        assert group is not None
        sharded.shard(group)
        assert 2 * bytes_of(sharded.layers) == bytes_of(whole.layers)
        generator = torch.Generator().manual_seed(distributed.get_rank())
        for of_ranks in ([(), (48,)], [(32, 48, 64), (48,)], [(32, 64), ()]):
            sides = of_ranks[distributed.get_rank()]
            if not sides:
                sharded.join_calls()
                continue
            groups = [[torch.rand(2, 3, side, side, generator=generator)] for side in sides]
            for ours, expected in zip(sharded(groups), whole(groups), strict=True):
                assert torch.equal(ours.features, expected.features)
                assert not ours.features.is_inference()
        assert 2 * bytes_of(sharded.layers) == bytes_of(whole.layers)  # nothing stays gathered

    run_two_forks(check, tmp_path)


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    def check() -> None:
        group = distributed.group.WORLD
        assert group is not None
        with pytest.raises(ValueError, match="Teacher 'deep': `shard`"):
            shard_blocks("deep", torch.nn.Linear(2, 2), group, CPU)

    run_two_forks(check, tmp_path)
