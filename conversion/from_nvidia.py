"""Opens NVIDIA's RADIO checkpoints as our model, saves it, and compares it with stored outputs of NVIDIA's code."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.checks_radio import check_choice, own_names
from modeling_radio.conversion.nvidia.config import adaptor_names, build_config_fields
from modeling_radio.conversion.nvidia.keys import adaptor_of, head_names, our_keys
from modeling_radio.conversion.nvidia.source import NvidiaCheckpoint, read_checkpoint
from modeling_radio.conversion.nvidia.tensors import (
    check_finite,
    check_kinds,
    fold_layer_scale,
    fold_spectral,
    has_layer_scale,
    spectral_epsilon,
    to_one_dtype,
)
from modeling_radio.conversion.verification import (
    Comparison,
    check_tolerance,
    compare_with_reference,
    format_comparisons,
    largest_difference,
)
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.kinds import Conversion
from modeling_radio.nvidia.config import source_fields
from modeling_radio.nvidia.folder import check_fit
from modeling_radio.nvidia.radio1d import is_radio1d
from modeling_radio.video_processing_radio import RadioVideoProcessor


def convert(
    source: str | Path,
    *,
    adaptors: Sequence[str] | None = None,
    version: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RadioModel:
    """Open a checkpoint of NVIDIA's as our model.

    Moving-average weights are preferred. Spectral reparametrization and the backbone's LayerScale are folded into the
    linear layers, so that a saved folder opens as transformers' native RADIO model too; of RADIO1D, which native does
    not know, LayerScale stays.

    Args:
        source: A `.pth.tar` file, a folder in the layout of NVIDIA's Hub repositories, or such a repository's name.
        adaptors: Adaptors to keep, by name; `None` keeps all that the file has.
        version: Name of the published version, for example "c-radio_v4-h". A training file does not name it; `None`
            infers it from its teachers and sizes.
        overrides: Configuration fields to set by hand, where the checkpoint does not determine them.

    Returns:
        The model in evaluation mode, in the data type of the file; where its tensors have several, in float32.

    Raises:
        ValueError: If the source cannot be read, asks to run code, or has tensors that are unknown, missing, not
            finite or no floating-point numbers (all are listed), or a name in the arguments is unknown.
    """
    checkpoint = read_checkpoint(source)
    teachers = [teacher["name"] for teacher in checkpoint.args.get("teachers") or []]
    mapping = our_keys(checkpoint.state, teachers)
    _check_distinct(mapping)
    check_kinds({theirs: checkpoint.state[theirs] for theirs in mapping})
    source_keys = {ours: theirs for theirs, ours in mapping.items()}
    state = to_one_dtype({ours: checkpoint.state[theirs] for theirs, ours in mapping.items()}, source_keys)
    state = _select_adaptors(state, checkpoint, adaptors)
    state = fold_spectral(state, spectral_epsilon(checkpoint.args))
    layer_scale = has_layer_scale(state)
    if not is_radio1d(checkpoint.args):
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
    with torch.device("meta"):  # `_load` assigns the file's tensors
        model = RadioModel(config)
    config.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())  # the same for all
    _load(model, state, source_keys)
    _warn_of_other_tokens(model.config)
    return model.eval()


def _warn_of_other_tokens(config: RadioConfig) -> None:
    for adaptor in config.adaptor_configs:
        if adaptor.token_index >= config.num_cls_tokens:
            kind = "a register" if adaptor.token_index < config.num_prefix_tokens else "the first patch"
            warnings.warn(
                f"The summary head of {adaptor.name!r} reads token {adaptor.token_index}, {kind}, as in NVIDIA's code: "
                f"its slot lies behind the {config.num_cls_tokens} class tokens.",
                stacklevel=3,
            )


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


def _load(model: RadioModel, state: dict[str, Tensor], source_keys: Mapping[str, str]) -> None:
    state = {**state, "radio_model.summary_idxs": torch.tensor(model.config.summary_idxs)}
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


def save(
    model: RadioModel | RadioForZeroShotImageClassification,
    folder: Path,
    source: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_source: str | None = None,
) -> None:
    """Write model, processor, tokenizer, remote code and a card into a folder.

    Args:
        model: Result of `convert`, also with a text tower.
        folder: Output folder.
        source: Name of NVIDIA's checkpoint in the card.
        tokenizer: Tokenizer of the text tower.
        text_source: Name of the text tower's checkpoint in the card.
    """
    model.save_pretrained(folder)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(folder)
    if model.config.video_temporal_patch_size is not None:
        RadioVideoProcessor.from_model_config(model.config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    Conversion(source, text_source).save(folder)
    write_card(folder)


def verify(folder: Path, reference: Path, tolerance: float) -> list[Comparison]:
    """Open a converted folder, compare it with stored outputs and print the table.

    Returns:
        One comparison per stored output.

    Raises:
        ValueError: If an output differs by more than `tolerance`, or `tolerance` is no number of at least 0.
    """
    check_tolerance(tolerance)
    model = RadioModel.from_pretrained(folder, dtype=torch.float32).eval()
    comparisons = compare_with_reference(model, reference)
    print(format_comparisons(comparisons, tolerance))
    largest = largest_difference(comparisons)
    if not largest <= tolerance:
        raise ValueError(f"Outputs differ from {str(reference)!r} by up to {largest:.2e}, more than {tolerance:g}.")
    return comparisons


def read_label(source: str) -> str:
    """Return the name of a source in a card: a Hub name in full, a local path by its last part."""
    return Path(source).name if Path(source).exists() else source
