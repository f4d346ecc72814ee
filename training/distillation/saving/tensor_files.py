"""Tensors in files: one file where they are whole, one for each part where they are sharded over ranks (FSDP2).

Shards are cut along the first dimension. A tensor is what its parts are one after the other, in the order of the files'
names, so that any number of ranks reads what any other wrote. The format is safetensors, whoever wrote it: nothing in
it is executed, unlike the index of `torch.distributed.checkpoint`, which is a pickle.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.distillation.saving.checkpoints import CheckpointError
from training.student.shards import as_part, first_row, local_parts, part_number


def writers_of(name: str, tensors: Mapping[str, Tensor], *, is_main_process: bool) -> dict[str, Callable[[Path], None]]:
    """Return what writes this rank's part of tensors as they are now: copies are taken, without any exchange.

    Args:
        name: Of the files, without what tells one from the other.
        tensors: By name, whole or sharded.
        is_main_process: Whether to save what is whole.

    Returns:
        Writers of files by name; none where other ranks write everything. Of no tensors at all (an optimizer's
        before its first step) there is a file too: that none is missing can be told.
    """
    number, count = 0, 1
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        place = part_number(tensor)
        is_whole = place == (0, 1)
        if place is not None and (is_main_process or not is_whole):
            number, count = (number, count) if is_whole else place
            own[key] = local_parts([tensor])[0].detach().to("cpu", copy=True).contiguous()
    file = f"{name}.safetensors" if count == 1 else f"{name}-{number + 1:05d}-of-{count:05d}.safetensors"
    return {file: partial(save_file, own)} if own or (is_main_process and not tensors) else {}


class SavedTensors:
    """The tensors of a file or of its parts, read one by one as they are asked for.

    Args:
        folder: Where the files lie.
        name: Their name without what tells one from the other.

    Raises:
        CheckpointError: If there are none.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.safetensors"
        paths = [self.path] if self.path.is_file() else sorted(folder.glob(f"{name}-?????-of-?????.safetensors"))
        if not paths:
            raise CheckpointError(f"{str(self.path)!r} is missing. Restore it from a copy, or give another --output.")
        self._files = [safe_open(path, "pt") for path in paths]
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            for key in file.keys():  # noqa: SIM118
                rows, *others = file.get_slice(key).get_shape() or [None]
                before = self.shapes.get(key, (0,))
                self.shapes[key] = () if rows is None else (before[0] + rows, *others)

    def read(self, key: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor, sharded as `like` is: then this rank reads its rows only."""
        if not self.shapes[key]:
            return self._files[0].get_tensor(key)
        own = None if like is None else local_parts([like])[0]
        start = 0 if like is None else first_row(like)
        end = self.shapes[key][0] if own is None else start + len(own)
        slices = [file.get_slice(key) for file in self._files if key in file.keys()]  # noqa: SIM118
        parts: list[Tensor] = []
        for part in slices:
            rows = part.get_shape()[0]
            parts.append(part[min(max(start, 0), rows) : min(max(end, 0), rows)])
            start, end = start - rows, end - rows
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if like is None or own is None else as_part(found.to(own.device), like)
