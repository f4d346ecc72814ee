"""Tensors that are sharded over ranks (FSDP2): this rank's parts of them, and what needs the parts of all."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate


def whole_norm(norm: Tensor) -> Tensor:
    """Return a gradient norm as a plain scalar, the same on every rank."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def local_parts(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Return this rank's parts of tensors, which share their memory; all of them where nothing is sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else cast(Tensor, tensor) for tensor in tensors]


def whole_norms(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each of several tensors, given this rank's parts, with one exchange for all.

    Args:
        parts: Of each tensor.
        like: Tensors that are whole or sharded as these are.
    """
    norms = torch.stack(torch._foreach_norm(list(parts)))
    if not isinstance(like[0], DTensor):
        return norms
    return sum_over_shards([norms.square()], like[0])[0].sqrt()


def first_row(tensor: Tensor) -> int:
    """Return where this rank's part of a tensor begins along its first dimension: 0 where nothing is sharded."""
    if not isinstance(tensor, DTensor):
        return 0
    rows, first = len(tensor), 0
    for place, placement in enumerate(tensor.placements):
        if placement.is_shard(0):
            most = -(-rows // tensor.device_mesh.size(place))  # as torch.chunk cuts
            skipped = min(most * tensor.device_mesh.get_local_rank(place), rows)
            first, rows = first + skipped, min(most, rows - skipped)
    return first


def sum_over_shards(parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Return sums over the ranks among which `like` is sharded, with one exchange; `parts` where it is not.

    Args:
        parts: This rank's terms of several sums.
        like: A tensor, whole or sharded.
    """
    if not isinstance(like, DTensor):
        return list(parts)
    placements = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    flat = torch.cat([part.flatten() for part in parts])
    sums = DTensor.from_local(flat, like.device_mesh, placements, run_check=False).full_tensor()
    split = sums.split([part.numel() for part in parts])
    return [each.view_as(part) for each, part in zip(split, parts, strict=True)]


def gather_whole(part: Tensor, like: Tensor) -> Tensor:
    """Return the whole of a tensor that is sharded as `like` is, on every rank; all ranks must take part."""
    whole = as_part(part, like)
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor that every rank has, cut as `like` is; the inverse of `gather_whole`."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=like.placements).to_local()


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """Return the sharded tensor of which this rank has `part`, cut as `like` is; `part` itself where that is whole."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part_number(tensor: Tensor) -> tuple[int, int] | None:
    """Return which part of a tensor this rank has, from 0, and of how many; None if another rank has the same one."""
    if not isinstance(tensor, DTensor):
        return 0, 1
    number, count = 0, 1
    for place, placement in enumerate(tensor.placements):
        size, own = tensor.device_mesh.size(place), tensor.device_mesh.get_local_rank(place)
        if placement.is_shard():
            number, count = number * size + own, count * size
        elif own:
            return None
    return number, count
