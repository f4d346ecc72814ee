"""Many small tensors as one, to travel between processes and to a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only


ALIGNMENT = 8
"""Bytes of the largest type of numbers: each tensor begins at a multiple."""


@dataclass(frozen=True)
class _Slot:
    """Position of one tensor in the bytes of all."""

    first: int
    dtype: torch.dtype
    shape: torch.Size

    def read(self, data: Tensor) -> Tensor:
        """Return the tensor, which shares the memory of all bytes."""
        stop = self.first + self.shape.numel() * self.dtype.itemsize
        return data[self.first : stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedTensors:
    """A structure of tensors as one tensor: one open file between processes, and one copy to a device.

    Attributes:
        data: Bytes of all tensors, one after the other.
        structure: Lists, dictionaries and named tuples with a `_Slot` in place of each tensor.
    """

    data: Tensor
    structure: Any

    @classmethod
    def of(cls, structure: Any) -> PackedTensors:
        """Join the tensors of a structure of lists, dictionaries and (named) tuples."""
        parts, size = [torch.empty(0, dtype=torch.uint8)], 0

        def put(tensor: Tensor) -> _Slot:
            nonlocal size
            slot, content = _Slot(size, tensor.dtype, tensor.shape), tensor.contiguous().flatten().view(torch.uint8)
            parts.append(F.pad(content, (0, -len(content) % ALIGNMENT)))
            size += len(parts[-1])
            return slot

        slots = tree_map_only(Tensor, put, structure)
        return cls(torch.cat(parts), slots)

    def pin_memory(self) -> PackedTensors:
        """Return the same in page-locked memory; PyTorch's loaders call it."""
        return replace(self, data=self.data.pin_memory())

    def to(self, device: torch.device) -> Any:
        """Return the structure with its tensors on a device."""
        data = self.data.to(device, non_blocking=True)
        return tree_map_only(_Slot, lambda slot: slot.read(data), self.structure)
