"""Reads NVIDIA's two checkpoint formats: the training file (`.pth.tar`) and the Hub folder."""

import json
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor


ALLOWED_GLOBALS: list[Callable | tuple[Callable, str]] = [Namespace]
"""Classes that a training file may create besides tensors, data types and plain containers."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLES = ("*.pth.tar", "*.pth", "*.pt")


@dataclass(frozen=True)
class NvidiaCheckpoint:
    """What a checkpoint of NVIDIA's holds.

    Attributes:
        label: Where it came from, for messages and the card.
        state: Tensors under the file's own keys.
        args: Arguments of the training run, as plain JSON values; data types are strings such as "torch.float32".
        hub_config: The rest of `config.json`, for a Hub folder.
        arch: Name of the architecture, where the file has one.
        epoch: Last epoch, where the file has one.
    """

    label: str
    state: dict[str, Tensor]
    args: dict[str, Any]
    hub_config: dict[str, Any] | None = None
    arch: str | None = None
    epoch: int | None = None


def read_checkpoint(source: str | Path) -> NvidiaCheckpoint:
    """Read a checkpoint without running any code that it may hold.

    Args:
        source: A training file, a folder in the layout of NVIDIA's Hub repositories, or the name of such a repository.

    Raises:
        ValueError: If there is no such checkpoint, it is damaged, or its pickle asks for more than tensors, numbers
            and `argparse.Namespace`.
    """
    path = Path(source)
    if path.is_file():
        return _read_pickle(path)
    if path.is_dir():
        return _read_folder(path, str(path))
    if _HUB_ID.fullmatch(str(source)):
        return _read_folder(_download(str(source)), str(source))
    raise ValueError(f"No checkpoint at {str(source)!r}: name a .pth.tar file, a folder or a Hub repository ORG/NAME.")


def _download(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "*.safetensors", "*.safetensors.*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{repository!r} is no file or folder here and could not be fetched from the Hub: {reason}"
        ) from error


def _read_folder(folder: Path, label: str) -> NvidiaCheckpoint:
    config_file = folder / "config.json"
    if not config_file.is_file():
        return _read_only_pickle(folder)
    try:
        config = json.loads(config_file.read_text())
    except ValueError as error:
        raise ValueError(f"{str(config_file)!r} is no valid JSON: {error}.") from error
    if not isinstance(config.get("args"), dict):
        raise ValueError(
            f"{str(config_file)!r} has no training arguments `args`: it is not in NVIDIA's layout. Open it with "
            "RadioModel.from_pretrained if it is a RADIO checkpoint already."
        )
    args = config.pop("args")
    return NvidiaCheckpoint(label, _read_safetensors(folder), args, hub_config=config)


def _read_only_pickle(folder: Path) -> NvidiaCheckpoint:
    """Read the one training file of a folder that has no `config.json`."""
    files = sorted({file for pattern in _PICKLES for file in folder.glob(pattern)})
    if len(files) != 1:
        raise ValueError(f"{str(folder)!r} has no config.json and {len(files)} .pth.tar files: name one file.")
    return _read_pickle(files[0])


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{str(folder)!r} lacks {', '.join(missing)}.")
    return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}


def _read_pickle(path: Path) -> NvidiaCheckpoint:
    content = _unpickle(path)
    if not isinstance(content, dict) or "args" not in content or not ({"state_dict", "state_dict_ema"} & set(content)):
        raise ValueError(f"{str(path)!r} is no RADIO training file: it must hold `args` and `state_dict`.")
    # The moving average is what was evaluated and released; the raw weights only resume the training.
    state = content.get("state_dict_ema") or content["state_dict"]
    strangers = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"{str(path)!r} has state entries that are no tensors: {', '.join(map(str, strangers))}.")
    args = content["args"]
    return NvidiaCheckpoint(
        label=path.name,
        state=dict(state),
        args=_plain(vars(args) if isinstance(args, Namespace) else dict(args)),
        arch=content.get("arch"),
        epoch=content.get("epoch"),
    )


def _unpickle(path: Path) -> Any:
    # Only the zip format can be mapped into memory instead of being read.
    mapped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: nothing that a user could change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch file: {reason}") from error


def _refusal(path: Path, message: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted is None:
        return f"{str(path)!r} is damaged or no PyTorch file."
    return (
        f"{str(path)!r} was not opened, and none of its code was run: its pickle asks for `{wanted.group(1)}`, and a "
        "checkpoint needs only tensors, numbers and argparse.Namespace."
    )


def _plain(value: Any) -> Any:
    """Turn training arguments into JSON values."""
    if isinstance(value, Namespace):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, Tensor):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
