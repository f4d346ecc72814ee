"""Opens folders in the layout of NVIDIA's Hub repositories: what their weights tell, and whether all of them fit."""

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from modeling_radio.checks_radio import read_json
from modeling_radio.configuration_radio import RadioConfig
from modeling_radio.modeling_radio import ADAPTORS, FILLERS, PATCH_GENERATOR, POSITIONS, PREFIX_TOKENS, SUMMARY_INDICES

from .arguments import check_hub_config, is_eradio
from .beside import folder_of_archive, folder_with_adaptors, is_training_file, root_of
from .config import (
    backbone_fields,
    config_fields_from_nvidia,
    has_one_token,
    is_nvidia_config,
    temporal_patch_size,
    token_fields,
    with_adaptors,
)
from .fit import check_fit
from .navit import OLDER_NAMES, is_navit
from .nemotron import is_nemotron
from .radio1d import is_radio1d
from .stored_tensors import StoredTensor, stored_tensors


_INNER = {
    r"^radio_model\.model\.inner\.": "radio_model.model.",  # how DINOv2's ViTs are wrapped there
    r"(?<=\.ls[12]\.)gamma$": "grandma",  # RADIO1D's, where ViTs say `grandma`; heads have it in training files only
}
_INNER_PREFIX_TOKENS = PREFIX_TOKENS.replace("radio_model.model.", "radio_model.model.inner.")
_BLOCKS = (
    (re.compile(r"radio_model\.model\.(?:inner\.)?blocks\.([0-9]{1,4})\."), "depth", "num_hidden_layers"),
    (re.compile(r"radio_model\.model\.decoder\.blocks\.([0-9]{1,4})\."), "decoder_depth", "decoder_depth"),
)
_LOCATION = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


class NvidiaFolder:
    """Folders in the layout of NVIDIA's Hub repositories, one of `FOREIGN_LAYOUTS`."""

    def place(self, source: Any, arguments: Mapping[str, Any]) -> Any:
        """Return the folder with the adaptors that the arguments of `from_pretrained` ask for; mostly the source."""
        asked = _asked({"adaptor_names": arguments.get("adaptor_names")})
        location = {name: arguments[name] for name in _LOCATION if name in arguments}
        return folder_with_adaptors(source, asked, location) if asked else source

    def describes(self, values: dict[str, Any]) -> bool:
        """Return whether a parsed `config.json` is in this layout."""
        return is_nvidia_config(values)

    def fields(self, values: dict[str, Any], adaptor_names: Any) -> dict[str, Any]:
        """Return the arguments of `RadioConfig` that a parsed `config.json` gives, see `config_fields_from_nvidia`."""
        return config_fields_from_nvidia(values, adaptor_names)

    def opening_arguments(self, folder: str | Path, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments with which transformers opens a folder of NVIDIA's right.

        The number of registers and the tokens of the summary are in the weights, which win over `config.json`.

        Args:
            folder: A folder or the name of a Hub repository.
            arguments: Those of `from_pretrained`.

        Returns:
            All arguments, or nothing where the folder is not in NVIDIA's layout.

        Raises:
            ValueError: If the arguments describe no network that the weights can be of, or a file of weights is
                damaged.
        """
        # It warns of `trust_remote_code`, which the Auto classes pass on.
        location = {name: value for name, value in arguments.items() if name != "trust_remote_code"}
        try:
            values, _ = PreTrainedConfig.get_config_dict(folder, **location)
        except OSError:
            return None  # transformers will say what the folder lacks
        if not is_nvidia_config(values):
            return None
        check_hub_config(values, f"{folder}/config.json")
        location = {name: arguments[name] for name in _LOCATION if name in arguments}
        complete = folder_with_adaptors(folder, _asked(arguments), location)
        is_joined = complete != folder  # a local one, with adaptors of the training file
        if is_joined:
            arguments = {name: value for name, value in arguments.items() if name not in ("revision", "subfolder")}
            folder, location = complete, {}
            values = read_json(Path(folder, "config.json"))
        values = with_adaptors(values, arguments.get("adaptor_names"))
        tensors = stored_tensors(folder, location)
        _check_trunk(values["args"], tensors)
        _check_adaptors(values, tensors)
        fields = {**_token_fields(values["args"], tensors), **_video_fields(tensors)}
        older = OLDER_NAMES if is_navit(values["args"]) else {}
        opening = {
            **arguments,
            "key_mapping": {**_INNER, **older, **(arguments.get("key_mapping") or {})},
            "ignore_mismatched_sizes": True,  # `check_loaded` names them, with whatever else does not fit
            **({"pretrained_model_name_or_path": folder} if is_joined else {}),
        }
        config = arguments.get("config")
        if not isinstance(config, PreTrainedConfig):
            return {**fields, **opening}
        for name, value in fields.items():
            setattr(config, name, value)
        return opening

    def check_loaded(self, model: Any) -> None:
        """Refuse a network that the weights of NVIDIA's folder did not fill.

        Args:
            model: As `from_pretrained` opened it.

        Raises:
            ValueError: If a tensor of the backbone or of an adaptor is missing, unknown or of another shape; all are
                named.
        """
        loaded = model._loaded
        missing = [key for key in loaded["missing_keys"] if key.startswith("radio_model.")]
        # Adaptors that were not asked for may be there.
        adaptors = tuple(f"{ADAPTORS}.{adaptor.name}." for adaptor in model.config.adaptor_configs)
        unknown = [
            key for key in loaded["unexpected_keys"] if key.startswith(adaptors) or not key.startswith(f"{ADAPTORS}.")
        ]
        # Where one token stands for all teachers, the file lists them nevertheless.
        misshapen = [
            f"{key} {tuple(given)} instead of {tuple(wanted)}"
            for key, given, wanted in loaded["mismatched_keys"]
            if key != SUMMARY_INDICES
        ]
        check_fit(sorted(unknown), sorted(missing), sorted(misshapen))
        model._weight_conversions = []  # transformers would save the weights under NVIDIA's keys, but our configuration


class TrainingFile:
    """Training files of NVIDIA's (`.pth.tar`) on this machine, which are converted once."""

    def place(self, source: Any, arguments: Mapping[str, Any]) -> Any:
        """Return the converted folder of a training file, or any other source itself."""
        return folder_of_archive(source, arguments.get("version")) if is_training_file(source) else source

    def describes(self, values: dict[str, Any]) -> bool:
        """Return that no `config.json` shows it."""
        return False

    def opening_arguments(self, folder: str | Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of `from_pretrained` with the converted folder in place of the file; nothing for others.

        Args:
            folder: Folder, file or name that is opened.
            arguments: Those of the call.

        Raises:
            ValueError: If the file is damaged, or of no release that can be told from others.
        """
        place = self.place(folder, arguments)
        return None if place == folder else {**arguments, "pretrained_model_name_or_path": place}

    def check_loaded(self, model: Any) -> None:
        """Check nothing: conversion did."""


class NemotronFolder:
    """Language models whose vision tower is a RADIO: refused with the command that takes the tower out."""

    def place(self, source: Any, arguments: Mapping[str, Any]) -> Any:
        """Return any other source itself.

        transformers would take `vision_config` for the configuration of a whole folder, and all weights as missing.

        Raises:
            ValueError: If it is such a model.
        """
        root = root_of(source, {name: arguments[name] for name in _LOCATION if name in arguments})
        if root is not None and is_nemotron(root):
            raise ValueError(
                f"{str(source)!r} is a language model with a RADIO as its vision tower. Take that out and open it: "
                f"radio convert {source} tower"
            )
        return source

    def describes(self, values: dict[str, Any]) -> bool:
        """Return that none is opened."""
        return False

    def opening_arguments(self, folder: str | Path, arguments: Mapping[str, Any]) -> None:
        """Return that nothing opens it."""

    def check_loaded(self, model: Any) -> None:
        """Check nothing."""


class FolderWithUnnamedVideo:
    """Folders in our layout from elsewhere, whose weights have temporal patches that no field of theirs tells of."""

    def place(self, source: Any, arguments: Mapping[str, Any]) -> Any:
        """Return the source: it is opened itself."""
        return source

    def describes(self, values: dict[str, Any]) -> bool:
        """Return that no `config.json` shows it."""
        return False

    def opening_arguments(self, folder: str | Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of `from_pretrained` with the frames of a temporal patch, or nothing to change.

        Folders of ours have a field for them. One from elsewhere may lack it; of those, local ones are looked at.

        Args:
            folder: A folder in our layout, or another source of transformers', of which nothing is changed.
            arguments: Those of the call.

        Raises:
            ValueError: If the projection of temporal patches has no possible shape, or a file of weights is damaged.
        """
        local = Path(folder, arguments.get("subfolder") or "")
        if not (local / "config.json").is_file() or "video_temporal_patch_size" in read_json(local / "config.json"):
            return None
        fields = _video_fields(stored_tensors(local))
        config = arguments.get("config")
        if not fields:
            return None
        if not isinstance(config, PreTrainedConfig):
            return {**fields, **arguments}
        config.video_temporal_patch_size = fields["video_temporal_patch_size"]
        return arguments

    def check_loaded(self, model: Any) -> None:
        """Check nothing: transformers reports what does not fit."""


def _asked(arguments: Mapping[str, Any]) -> list[str]:
    """Return the adaptors that the arguments of `from_pretrained` ask for, by name or by a configuration."""
    names, config = arguments.get("adaptor_names"), arguments.get("config")
    asked = list(names) if isinstance(names, list | tuple) else []
    if isinstance(config, RadioConfig):
        asked += config.all_adaptor_names
    return [name for name in dict.fromkeys(asked) if isinstance(name, str)]


def _check_trunk(args: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse arguments of a larger network than the weights': all of it would be built before anything is missed."""
    if not tensors or is_eradio(args):
        return  # no safetensors files; or no blocks that could be counted
    named = backbone_fields(args)
    for pattern, argument, field in _BLOCKS:
        blocks = {int(match[1]) for key in tensors if (match := pattern.match(key))}
        if named.get(field, 0) > len(blocks):
            raise ValueError(
                f"The tensors do not fit the architecture. `args.model_kwargs.{argument}` must be {len(blocks)}, the "
                f"number of blocks in the weights, got {named[field]}."
            )
    prefix = tensors.get(PREFIX_TOKENS, tensors.get(_INNER_PREFIX_TOKENS))
    if prefix is not None and prefix.shape[-1:] != [named["hidden_size"]]:
        raise ValueError(
            f"The tensors do not fit the architecture. {PREFIX_TOKENS} must end in `args.model_kwargs.embed_dim`, "
            f"{named['hidden_size']}, got the shape {tuple(prefix.shape)}."
        )


def _check_adaptors(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse widths that no tensor of the adaptor has: what does not fit is made anew by transformers, of any size."""
    if not tensors:
        return
    described = config.get("adaptor_configs") or {}
    for name in (name for name in config.get("adaptor_names") or [] if name in described):
        stored = [tensor.shape for key, tensor in tensors.items() if key.startswith(f"{ADAPTORS}.{name}.")]
        sides = sorted({side for shape in stored for side in shape})
        for head, field in itertools.product(("summary", "feature"), ("hidden_dim", "output_dim")):
            width = described[name][head][field]
            if width not in sides:
                raise ValueError(
                    f"The tensors do not fit the architecture. `adaptor_configs.{name}.{head}.{field}` must be a side "
                    f"of a tensor of that adaptor, one of {sides}, got {width}."
                )


def _token_fields(args: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return what the weights tell of the tokens before the patches."""
    fields: dict[str, Any] = {}
    prefix = tensors.get(PREFIX_TOKENS, tensors.get(_INNER_PREFIX_TOKENS))
    if is_radio1d(args):
        fields |= _table_sizes(backbone_fields(args)["patch_size"], tensors)
    if prefix is not None and len(prefix.shape) == 2:
        fields["num_registers"] = prefix.shape[0] - token_fields(args, of_hub_folder=True)["num_cls_tokens"]
    if SUMMARY_INDICES in tensors and not has_one_token(args) and not is_navit(args):
        fields["summary_idxs"] = tensors[SUMMARY_INDICES].read().tolist()
    return fields


def _video_fields(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return what the weights tell of temporal patches."""
    patches, video = (tensors.get(f"{PATCH_GENERATOR}.{name}.weight") for name in ("embedder", "video_embedder"))
    if video is None or patches is None or len(patches.shape) != 2:
        return {}
    return {"video_temporal_patch_size": temporal_patch_size(video.shape, patches.shape)}


def _table_sizes(patch_size: int, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return the sides of RADIO1D's tables, which its arguments may leave open."""
    fields = {}
    if (table := tensors.get(POSITIONS)) is not None and len(table.shape) == 3:
        fields["max_img_size"] = math.isqrt(table.shape[1]) * patch_size
    if (table := tensors.get(FILLERS)) is not None and len(table.shape) == 2:
        fields["filler_grid_size"] = math.isqrt(table.shape[0])
    return fields
