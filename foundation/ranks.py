"""The two operations between ranks that running statistics need; both do nothing in a single process."""

import torch
from torch import Tensor, distributed


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


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is set on at least one rank."""
    if not _is_distributed():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())
