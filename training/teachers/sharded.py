"""Teachers whose blocks are sharded over ranks (FSDP2): each rank keeps a part, and gathers one block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from modeling_radio.core.ranks import sum_over_ranks
from modeling_radio.training.teachers.outputs import longest_list, teacher_error


class EqualCalls:
    """Lets the ranks of a group call a sharded network equally often, since all gather each block together.

    Ranks have images of different numbers of sizes, and so of calls, or no images at all. Before each call a rank tells
    the others that it has one; a rank that has none left calls with one image for nothing, until nobody has.

    Args:
        group: The ranks among which the network is sharded.
        side_px: Side of a square image that the network takes, for a rank that has not had any image yet.
        device: Device of the network.
        turn: Its position among the networks that ranks share. Each has ranks of its own, which would wait for each
            other for ever if they called two networks in different orders.
    """

    def __init__(self, group: distributed.ProcessGroup, side_px: int, device: torch.device, turn: int) -> None:
        self.group, self.device, self.turn = group, device, turn
        self._spare = torch.zeros(1, 3, side_px, side_px, device=device)

    def begin(self, images: Tensor) -> None:
        """Announce a call with these images, `(batch, 3, height, width)`."""
        self._spare = images[:1]
        self._announce(1)

    def finish(self, run: Callable[[Tensor], object]) -> None:
        """Call the network for nothing until no rank has a call left."""
        while self._announce(0).item():
            run(self._spare)

    def _announce(self, count: int) -> Tensor:
        return sum_over_ranks(torch.full((), count, device=self.device), self.group)


def shard_blocks(name: str, network: nn.Module, group: distributed.ProcessGroup, device: torch.device) -> None:
    """Shard each block of a frozen network over a group; what lies outside of the blocks stays whole on each rank.

    Args:
        name: The teacher's, for the error.
        network: Its blocks are its longest list of modules of one class.
        group: All its ranks must take part, and have the same weights.
        device: Device of the network.

    Raises:
        ValueError: If it has no such list.
    """
    blocks = longest_list(network)
    if not blocks:
        raise teacher_error(name, "`shard` must be false, because its network has no list of blocks of one class.")
    mesh = DeviceMesh.from_group(group, device.type)
    for block in blocks:
        if not isinstance(block, FSDPModule):  # of a network that teachers share
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
