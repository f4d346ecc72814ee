"""Tensors in safetensors files that detect damage: the header has the SHA-256 of each, compared on reading."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from modeling_radio.core.errors import UserError


_HEADER = "checked"
_FACTS = ""  # no tensor has this name


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
    """Write tensors with their checksums.

    Args:
        tensors: By name.
        path: File to write.
        facts: Plain data, returned by `CheckedTensors.facts`.
    """
    known = json.dumps(facts or {})
    sums = {name: _sum_of(tensor) for name, tensor in tensors.items()} | {_FACTS: _sha256(known.encode())}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(content, path, {_HEADER: json.dumps({"facts": known, "sha256": sums})})


class CheckedTensors:
    """A file of `save_tensors`, whose tensors are read one by one.

    Args:
        path: The file.

    Raises:
        DamagedFileError: If it is no such file, or something in it differs from what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, "pt")
            header = json.loads(self._file.metadata()[_HEADER])
            known, self._sums = header["facts"], dict(header["sha256"])
            is_intact = _sha256(known.encode()) == self._sums.pop(_FACTS) and set(self._file.keys()) == set(self._sums)
        except SafetensorError as error:
            raise DamagedFileError(path, str(error)) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFileError(path, "it has no checksums") from error
        if not is_intact:
            raise DamagedFileError(path, "its header is not what was written")
        self.facts: dict[str, Any] = json.loads(known)

    def keys(self) -> set[str]:
        """Return the names of the tensors."""
        return set(self._sums)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def read(self, name: str) -> Tensor:
        """Return a tensor, mapped into memory."""
        tensor = self._file.get_tensor(name)
        if _sum_of(tensor) != self._sums[name]:
            raise DamagedFileError(self.path, f"{name!r} is not what was written")
        return tensor

    def read_all(self) -> dict[str, Tensor]:
        """Return all tensors."""
        return {name: self.read(name) for name in self.keys()}


def _sum_of(tensor: Tensor) -> str:
    whole = tensor.detach().cpu().contiguous()
    head = f"{whole.dtype} {list(whole.shape)} ".encode()
    return _sha256(head, whole.flatten().view(torch.uint8).numpy().data)


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
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
