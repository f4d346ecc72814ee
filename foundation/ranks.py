"""Several ranks: the sums and copies that running statistics need, and how a launcher asks for shards (FSDP)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import MixedPrecisionPolicy

from foundation.command import USER_ERRORS


if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin

T = TypeVar("T")


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, the same bits on each; `tensor` is overwritten."""
    if _is_distributed():
        distributed.all_reduce(tensor)
    return tensor


def copy_from_first_rank(tensor: Tensor) -> Tensor:
    """Return rank 0's `tensor` on every rank; `tensor` is overwritten elsewhere."""
    if _is_distributed():
        distributed.broadcast(tensor, src=0)
    return tensor


def on_first_rank(work: Callable[[], T]) -> T:
    """Do something on rank 0 alone and return its result on every rank.

    An error that the user can mend is raised on every rank, so that none waits for one that has ended.
    """
    if not _is_distributed():
        return work()
    answer: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            answer[0] = work()
        except USER_ERRORS as error:
            answer[1] = error
    distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is set on at least one rank."""
    if not _is_distributed():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """Return the settings of FSDP that `accelerate launch` passes on, None where it asks for no FSDP.

    Mixed precision is left to autocast, as without shards: Accelerate's policy for FSDP would turn all weights into
    bfloat16, also heads and others that autocast leaves alone, round labels, and sum the gradients of all ranks in it.

    Raises:
        ValueError: If the launcher asks for FSDP of version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP version {plugin.fsdp_version} is not supported: set `fsdp_version: 2`.")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin
