"""Opens folders in the layout of NVIDIA's Hub repositories: what their weights tell, and whether all of them fit."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from .messages_radio import check_choice
from .network_radio import ADAPTORS, PREFIX_TOKENS, SUMMARY_TOKENS
from .nvidia_radio import check_supported, has_one_token, is_nvidia_config, token_fields


UNUSED_KEYS = r"^radio_model\.model\.(mask_token|reg_token|input_conditioner\.(norm_mean|norm_std))$"
"""Tensors in published files that nobody reads: DINOv2's token for masked training, timm's registers (those of the
patch generator are used), the architecture's own constants."""

_INNER = {r"^radio_model\.model\.inner\.": "radio_model.model."}  # how DINOv2's ViTs are wrapped there
_INNER_PREFIX_TOKENS = PREFIX_TOKENS.replace("radio_model.model.", "radio_model.model.inner.")
_WEIGHTS = "model.safetensors"
_INTEGERS = {"I64": "q", "I32": "i"}
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_PLACE = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


class StoredTensor(NamedTuple):
    """Where a tensor lies in a safetensors file.

    Attributes:
        file: The file.
        start: Its first byte there.
        num_bytes: Its length.
        dtype: Its data type, as safetensors names it.
        shape: Its shape.
    """

    file: Path
    start: int
    num_bytes: int
    dtype: str
    shape: list[int]


def opening_arguments(folder: str | Path, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments with which transformers opens a folder of NVIDIA's right.

    The number of registers and the tokens of the summary are in the weights, which win over `config.json`.

    Args:
        folder: A folder or the name of a Hub repository.
        arguments: Those of `from_pretrained`.

    Returns:
        All arguments, or nothing where the folder is not in NVIDIA's layout.

    Raises:
        ValueError: If the network is one that is not supported yet, or a file of weights is damaged.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(folder, **arguments)
    except OSError:
        return None  # transformers will say what the folder lacks
    if not is_nvidia_config(values):
        return None
    tensors = _stored_tensors(folder, {name: arguments[name] for name in _PLACE if name in arguments})
    check_supported(values["args"]["model"], tensors)
    fields = _token_fields(values["args"], tensors)
    opening = {
        **arguments,
        "key_mapping": {**_INNER, **(arguments.get("key_mapping") or {})},
        "ignore_mismatched_sizes": True,  # `check_loaded` names them, with whatever else does not fit
        "output_loading_info": True,
    }
    config = arguments.get("config")
    if not isinstance(config, PreTrainedConfig):
        return {**fields, **opening}
    for name, value in fields.items():
        setattr(config, name, value)
    return opening


def check_loaded(config: Any, loaded: Mapping[str, Any]) -> None:
    """Refuse a network that the weights of NVIDIA's folder did not fill.

    Args:
        config: The network's `RadioConfig`.
        loaded: What transformers reports of the loading.

    Raises:
        ValueError: If a tensor of the backbone or of an adaptor is missing, unknown or of another shape; all are named.
    """
    missing = [key for key in loaded["missing_keys"] if key.startswith("radio_model.")]
    # Adaptors that were not asked for may be there.
    adaptors = tuple(f"{ADAPTORS}.{adaptor.name}." for adaptor in config.adaptor_configs)
    unknown = [
        key for key in loaded["unexpected_keys"] if key.startswith(adaptors) or not key.startswith(f"{ADAPTORS}.")
    ]
    # Where one token stands for all teachers, the file lists them nevertheless.
    misshapen = [
        f"{key} {tuple(given)} instead of {tuple(wanted)}"
        for key, given, wanted in loaded["mismatched_keys"]
        if key != SUMMARY_TOKENS
    ]
    check_fit(sorted(unknown), sorted(missing), sorted(misshapen))


def check_fit(unknown: Sequence[str], missing: Sequence[str], misshapen: Sequence[str]) -> None:
    """Refuse weights that are not those of the network.

    Raises:
        ValueError: If there are any; the message names all.
    """
    problems = {"unknown": unknown, "missing": missing, "of another shape": misshapen}
    found = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"The tensors do not fit the architecture. {'; '.join(found)}.")


def _token_fields(args: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return what the weights tell of the tokens before the patches."""
    fields: dict[str, Any] = {}
    prefix = tensors.get(PREFIX_TOKENS, tensors.get(_INNER_PREFIX_TOKENS))
    if prefix is not None:
        fields["num_registers"] = prefix.shape[0] - token_fields(args, of_hub_folder=True)["num_cls_tokens"]
    if SUMMARY_TOKENS in tensors and not has_one_token(args):
        fields["summary_idxs"] = _read_integers(tensors[SUMMARY_TOKENS])
    return fields


def _stored_tensors(folder: str | Path, place: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return where each tensor of a folder lies; nothing where the weights are not in safetensors files."""
    names = [_WEIGHTS]
    index = _find(folder, f"{_WEIGHTS}.index.json", place)
    if index is not None:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [file for name in names if (file := _find(folder, name, place)) is not None]
    return {key: tensor for file in files for key, tensor in _read_header(file).items()}


def _find(folder: str | Path, name: str, place: Mapping[str, Any]) -> Path | None:
    try:
        found = cached_file(folder, name, **place)
    except OSError:
        return None  # transformers will say so where it needs the file
    return None if found is None else Path(found)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size) if size <= _LARGEST_HEADER else b""
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged or no safetensors file: {error}.") from error
    entries.pop("__metadata__", None)
    return {
        key: StoredTensor(file, 8 + size + entry["data_offsets"][0], length, entry["dtype"], entry["shape"])
        for key, entry in entries.items()
        for length in [entry["data_offsets"][1] - entry["data_offsets"][0]]
    }


def _read_integers(tensor: StoredTensor) -> list[int]:
    check_choice(f"dtype of {SUMMARY_TOKENS}", tensor.dtype, _INTEGERS)
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return array(_INTEGERS[tensor.dtype], stream.read(tensor.num_bytes)).tolist()
