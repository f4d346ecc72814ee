"""Tensors in safetensors files that detect damage: the header has a SHA-256 of all content, compared on reading."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from modeling_radio.core.errors import UserError


class DamagedFileError(UserError):
    """A file whose content is not what was written; the message is one line that names it.

    Attributes:
        path: The file.
        reason: The damage in words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{str(path)!r} is damaged: {reason}. Delete it: the same command makes it again.")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors with a checksum.

    Args:
        tensors: By name.
        path: File to write.
        facts: Plain data, which `load_tensors` returns too.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = json.dumps(facts or {})
    save_file(content, path, {"facts": known, "sha256": _sum_of(content, known)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors, mapped into memory, and facts of a file of `save_tensors`; all of it is read once for its sum.

    Raises:
        DamagedFileError: If it is no such file, or something in it differs from what was written.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    known = metadata.get("facts", "")
    if metadata.get("sha256") != _sum_of(tensors, known):
        raise DamagedFileError(path, "its content is not what was written")
    return tensors, json.loads(known)


def stored_names(path: Path) -> set[str]:
    """Return the names of the tensors in a file, of which only the header is read.

    Raises:
        DamagedFileError: If it is no safetensors file.
    """
    with _opened(path) as file:
        return set(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedFileError(path, str(error)) from error


def _sum_of(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as `INDEX.NAME`, INDEX counting parameters; counts of steps become int64 scalars.

    PyTorch's `get_optimizer_state_dict` makes up a state for parameters that have none yet (a frozen trunk), so that a
    resumed run would differ from an uninterrupted one.
    """
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `optimizer_tensors`, moments sharded like their parameters; settings stay as they are."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = int(tensor) if tensor.dtype == torch.int64 else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
