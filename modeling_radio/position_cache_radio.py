"""Keeps the position tables that were resized last, so that images of one size are not each waited for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


Grid = tuple[int, int, torch.dtype]
"""Rows and columns of patches, and the type of the embeddings."""


class PositionCache:
    """Resized versions of one table, until it changes.

    Together they take no more memory than the table itself (our choice: a model at most doubles what it holds of
    positions, whatever sizes its images have), but the newest is kept in any case. What was not asked for the longest
    goes first. A copied or pickled model starts with an empty one.

    Threads may share it: what is kept is replaced as a whole and never changed, so that at worst two of them compute
    the same.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, dict[Grid, Tensor]] = (None, {})  # the table's state, and by grid, oldest first

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PositionCache, ()

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(position.nbytes for position in self._kept[1].values())

    def get(self, table: Tensor, grid: Grid, resize: Callable[[], Tensor]) -> Tensor:
        """Return what `resize` answers for a grid, from an earlier call if the table is still the same.

        Tensors from `torch.inference_mode` could not be trained with, so none are made here.
        """
        state, (kept_state, kept) = _state(table), self._kept
        if kept_state != state:
            kept = {}
        position = kept.get(grid)
        if position is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                position = resize()
        others = {key: value for key, value in kept.items() if key != grid}
        self._kept = (state, _newest({**others, grid: position}, table.nbytes))
        return position


def _newest(positions: dict[Grid, Tensor], max_bytes: int) -> dict[Grid, Tensor]:
    """Return the last entries that fit into some memory, and at least one."""
    kept: list[Grid] = []
    for grid in reversed(positions):
        max_bytes -= positions[grid].nbytes
        if kept and max_bytes < 0:
            break
        kept.append(grid)
    return {grid: positions[grid] for grid in reversed(kept)}


def _state(table: Tensor) -> tuple[int | float, ...]:
    """Return what changes when the table does.

    The version counter misses writes through `.data`, which many moving-average loops use, and tensors from
    `torch.inference_mode` have none: a sum of a thousandth of the table catches those. A write through `.data` to other
    numbers alone stays unseen: write to the parameter itself under `torch.no_grad` then.
    """
    probe = table.detach().flatten()[:: max(table.numel() // 1024, 1)].double().sum().item()
    return table.data_ptr(), 0 if table.is_inference() else table._version, probe
