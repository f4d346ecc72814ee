"""Reads NVIDIA's two checkpoint formats: the training file (`.pth.tar`) and the Hub folder."""

import inspect
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modeling_radio.checks_radio import read_json

from .arguments import check_arguments, check_hub_config, is_eradio
from .stored_tensors import open_tensors, weight_files
from .training_archive import open_archive


ERADIO_ARGUMENTS = "eradio_arguments.json"
"""File beside an unpublished E-RADIO: the arguments of its network."""
PICKLES = (".pth.tar", ".pth", ".pt")
"""Endings of the names of training files."""


@dataclass(frozen=True)
class NvidiaCheckpoint:
    """A checkpoint of NVIDIA's.

    Attributes:
        label: Its origin, for messages and the card.
        state: Tensors under the file's own keys.
        args: Arguments of the training run, as plain JSON values; data types are strings such as "torch.float32".
        hub_config: The rest of `config.json`, for a Hub folder.
        eradio_arguments: Content of the file of this name beside an E-RADIO, where there is one.
        arch: Name of the architecture, where the file has one.
        epoch: Last epoch, where the file has one.
    """

    label: str
    state: dict[str, Tensor]
    args: dict[str, Any]
    hub_config: dict[str, Any] | None = None
    eradio_arguments: dict[str, Any] | None = None
    arch: str | None = None
    epoch: int | None = None


def read_checkpoint(source: str | Path, label: str | None = None, *, with_sums: bool = True) -> NvidiaCheckpoint:
    """Read a checkpoint without running any code that it may hold.

    Args:
        source: A training file, or a folder in the layout of NVIDIA's Hub repositories.
        label: Its name in messages and in the card of a folder; by default the path.
        with_sums: Whether to compare a training file with its checksums, for which all of it is read.

    Raises:
        ValueError: If there is no such checkpoint, it is damaged, or its pickle asks for more than tensors, numbers
            and `argparse.Namespace`.
    """
    path = Path(source)
    if path.is_file():
        return _read_pickle(path, with_sums=with_sums)
    if path.is_dir():
        return _read_folder(path, label or str(path))
    raise ValueError(f"No checkpoint at {str(source)!r}: name a .pth.tar file, a folder or a Hub repository ORG/NAME.")


def _read_folder(folder: Path, label: str) -> NvidiaCheckpoint:
    config_file = folder / "config.json"
    if not config_file.is_file():
        return _read_only_pickle(folder)
    config = read_json(config_file)
    if not isinstance(config.get("args"), dict):
        raise ValueError(
            f"{str(config_file)!r} has no training arguments `args`: it is not in NVIDIA's layout. Open it with "
            "RadioModel.from_pretrained if it is a RADIO checkpoint already."
        )
    check_hub_config(config, str(config_file))
    args = config.pop("args")
    beside, state = _arguments_beside(folder, args), _read_safetensors(folder)
    for adaptor in config.get("adaptors_beside") or []:  # of the training file, which may have another precision
        state |= _like_backbone(state, f"radio_model.adaptors.{adaptor['name']}.")
    return NvidiaCheckpoint(label, state, args, hub_config=config, eradio_arguments=beside)


def _like_backbone(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return an adaptor's tensors in the data type of the backbone's."""
    dtype = next(tensor.dtype for key, tensor in state.items() if ".blocks." in key and ".adaptors." not in key)
    return {key: tensor.to(dtype) for key, tensor in state.items() if key.startswith(prefix)}


def _read_only_pickle(folder: Path) -> NvidiaCheckpoint:
    """Read the one training file of a folder that has no `config.json`."""
    files = sorted({file for ending in PICKLES for file in folder.glob(f"*{ending}")})
    if len(files) != 1:
        raise ValueError(f"{str(folder)!r} has no config.json and {len(files)} .pth.tar files: name one file.")
    return _read_pickle(files[0])


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for name in weight_files(folder) for key, tensor in load_tensors(folder / name).items()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file .safetensors.

    Raises:
        ValueError: If it is damaged.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _read_pickle(path: Path, *, with_sums: bool = True) -> NvidiaCheckpoint:
    content = open_archive(path, with_sums=with_sums)
    if not isinstance(content, dict) or "args" not in content or not ({"state_dict", "state_dict_ema"} & set(content)):
        raise ValueError(f"{str(path)!r} is no RADIO training file: it must hold `args` and `state_dict`.")
    # The moving average is what was evaluated and released; the raw weights only resume the training.
    name = "state_dict_ema" if content.get("state_dict_ema") else "state_dict"
    _check_types(path, {"args": Namespace | dict, name: dict, "arch": str | None, "epoch": int | None}, content)
    state, args = content[name], content["args"]
    strangers = [key for key, value in state.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if strangers:
        raise ValueError(f"{str(path)!r} has state entries that are no tensors: {', '.join(map(str, strangers))}.")
    plain = _plain(vars(args) if isinstance(args, Namespace) else args)
    check_arguments(plain, str(path))
    return NvidiaCheckpoint(
        label=path.name,
        state=dict(state),
        args=plain,
        eradio_arguments=_arguments_beside(path.parent, plain),
        arch=content.get("arch"),
        epoch=content.get("epoch"),
    )


def _arguments_beside(folder: Path, args: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of the file of network arguments beside an E-RADIO, if there is one."""
    file = folder / ERADIO_ARGUMENTS
    return read_json(file) if is_eradio(args) and file.is_file() else None


def _check_types(path: Path, types: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        if not isinstance(content.get(name), kind):
            wanted = inspect.formatannotation(kind)
            raise ValueError(f"`{name}` in {str(path)!r} must be {wanted}, got {content.get(name)!r:.60}.")


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
