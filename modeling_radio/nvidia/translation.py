"""Translates what a file or folder of NVIDIA's holds into our configuration and our names of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modeling_radio.checks_radio import check_choice, own_names
from modeling_radio.configuration_radio import RadioConfig
from modeling_radio.modeling_radio import SUMMARY_INDICES, RadioModel

from .config import source_fields
from .fit import check_fit
from .keys import adaptor_of, head_names, our_keys
from .navit import is_navit, todays_name
from .radio1d import is_radio1d
from .sizes import adaptor_fields, adaptor_names, build_config_fields
from .source import NvidiaCheckpoint
from .tensors import (
    check_finite,
    check_kinds,
    fold_layer_scale,
    fold_spectral,
    has_layer_scale,
    spectral_epsilon,
    to_one_dtype,
)


class Translated(NamedTuple):
    """A checkpoint in our layout.

    Attributes:
        config: The configuration, with the data type of the weights.
        state: The weights under our keys, but for the summary's indices, which the configuration has.
        source_keys: The file's key of each, for messages.
    """

    config: RadioConfig
    state: dict[str, Tensor]
    source_keys: dict[str, str]


def translate(
    checkpoint: NvidiaCheckpoint,
    *,
    adaptors: Sequence[str] | None = None,
    version: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    folds_layer_scale: bool = True,
) -> Translated:
    """Return a whole checkpoint in our layout; arguments and errors are those of `conversion.from_nvidia.convert`.

    Without `folds_layer_scale` the backbone keeps its LayerScale.
    """
    teachers = _teachers(checkpoint)
    state, source_keys = _our_state(checkpoint, list(checkpoint.state))
    state = _select_adaptors(state, checkpoint, adaptors)
    state = fold_spectral(state, spectral_epsilon(checkpoint.args))
    layer_scale = has_layer_scale(state)
    if folds_layer_scale and not is_radio1d(checkpoint.args) and not is_navit(checkpoint.args):
        state = fold_layer_scale(state)
    check_finite(state, source_keys)
    fields = build_config_fields(state, checkpoint, version)
    fields["nvidia_source"] = source_fields(
        checkpoint.args,
        arch=checkpoint.arch,
        epoch=checkpoint.epoch,
        heads=head_names(checkpoint.state, teachers),
        layer_scale=layer_scale,
    )
    RadioConfig.check_fields(overrides or {})
    config = RadioConfig(**{**fields, **(overrides or {})})
    config.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())  # the same for all
    return Translated(config, state, source_keys)


def build(translated: Translated) -> RadioModel:
    """Return the model that holds these weights, in evaluation mode.

    Raises:
        ValueError: If weights are missing, unknown or of another shape; all are named.
    """
    config, state, source_keys = translated
    with torch.device("meta"):  # the file's tensors are assigned
        model = RadioModel(config)
    state = {**state, SUMMARY_INDICES: torch.tensor(config.summary_idxs)}
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unknown = [source_keys.get(key, key) for key in state if key not in expected]
    misshapen = [
        f"{source_keys.get(key, key)} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    check_fit(unknown, missing, misshapen)
    model.load_state_dict({key: tensor.contiguous() for key, tensor in state.items()}, assign=True)
    return model.eval()


def translate_adaptor(
    checkpoint: NvidiaCheckpoint, name: str, check: Callable[[Mapping[str, Tensor]], None]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the weights of one adaptor; no other tensor is read.

    Args:
        checkpoint: A training file.
        name: The adaptor's, as the file has it.
        check: Gets the file's tensors of the adaptor before they are read, and raises a `ValueError` if they are
            damaged.

    Raises:
        ValueError: If there is no head of this name, or its weights are damaged.
    """
    mapping = our_keys(checkpoint.state, _teachers(checkpoint))
    available = adaptor_names(mapping.values(), checkpoint)
    check_choice("adaptor_names", name, available)
    keys = [key for key, ours in mapping.items() if adaptor_of(ours) == name]
    check({key: checkpoint.state[key] for key in keys})
    state, source_keys = _our_state(checkpoint, keys)
    state = fold_spectral(state, spectral_epsilon(checkpoint.args))
    check_finite(state, source_keys)
    return adaptor_fields(state, checkpoint, name), {key: tensor.contiguous() for key, tensor in state.items()}


def _teachers(checkpoint: NvidiaCheckpoint) -> list[str]:
    return [teacher["name"] for teacher in checkpoint.args.get("teachers") or []]


def _our_state(checkpoint: NvidiaCheckpoint, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under our keys, in one data type, and the file's key of each."""
    mapping = our_keys(keys, _teachers(checkpoint))
    if is_navit(checkpoint.args):
        mapping = {theirs: todays_name(ours) for theirs, ours in mapping.items()}
    _check_distinct(mapping)
    check_kinds({theirs: checkpoint.state[theirs] for theirs in mapping})
    source_keys = {ours: theirs for theirs, ours in mapping.items()}
    return to_one_dtype({ours: checkpoint.state[theirs] for theirs, ours in mapping.items()}, source_keys), source_keys


def _check_distinct(mapping: Mapping[str, str]) -> None:
    sources: dict[str, list[str]] = {}
    for theirs, ours in mapping.items():
        sources.setdefault(ours, []).append(theirs)
    clashes = [" and ".join(keys) for keys in sources.values() if len(keys) > 1]
    if clashes:
        raise ValueError(f"Tensors that stand for the same weight: {'; '.join(clashes)}.")


def _select_adaptors(
    state: dict[str, Tensor], checkpoint: NvidiaCheckpoint, names: Sequence[str] | None
) -> dict[str, Tensor]:
    available = adaptor_names(state, checkpoint)
    if names is None:
        return state
    names = own_names("adaptors", names, available)
    for name in names:
        check_choice("adaptors", name, available)
    unwanted = set(available) - set(names)
    return {key: tensor for key, tensor in state.items() if adaptor_of(key) not in unwanted}
