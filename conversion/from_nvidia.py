"""Opens NVIDIA's RADIO checkpoints as our model, saves it, and compares it with stored outputs of NVIDIA's code."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.conversion.verification import (
    OutputDifference,
    check_tolerance,
    compare_with_reference,
    format_comparisons,
    largest_difference,
)
from modeling_radio.core.hub import find_folder
from modeling_radio.core.opening import open_model
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.kinds import Conversion
from modeling_radio.nvidia.beside import folder_with_adaptors
from modeling_radio.nvidia.nemotron import SMALL_FILES, files_of_tower, is_nemotron, read_tower
from modeling_radio.nvidia.source import read_checkpoint
from modeling_radio.nvidia.translation import build, translate
from modeling_radio.video_processing_radio import RadioVideoProcessor


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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

    A Nemotron's vision tower keeps its LayerScale, if it has one, so that it can be put back (`to_nemotron`).

    Args:
        source: A `.pth.tar` file, a folder in the layout of NVIDIA's Hub repositories or of a Nemotron, or the name of
            such a repository.
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
    nemotron = find_nemotron(source)
    if nemotron is not None:
        if adaptors:
            raise ValueError(f"`adaptors` must be left out: the tower of a Nemotron has none, got {list(adaptors)}.")
        return read_tower(nemotron, str(source), version=version, overrides=overrides)
    if adaptors is not None:
        source = folder_with_adaptors(source, adaptors, argument="adaptors")
    is_name = not Path(source).exists() and HUB_ID.fullmatch(str(source))
    place = find_folder(str(source), "source") if is_name else source
    checkpoint = read_checkpoint(place, str(source))
    model = build(translate(checkpoint, adaptors=adaptors, version=version, overrides=overrides))
    _warn_of_other_tokens(model.config)
    return model


def find_nemotron(source: str | Path, *, with_projector: bool = False) -> Path | None:
    """Return the folder of a Nemotron, fetched as far as its tower lies in it; None for other sources.

    Args:
        source: A folder, a file or the name of a repository on the Hub.
        with_projector: Whether to fetch the projector too.

    Raises:
        ValueError: If the Hub does not return it, or its index is damaged.
    """
    if Path(source).exists() or not HUB_ID.fullmatch(str(source)):
        return Path(source) if is_nemotron(source) else None
    folder = find_folder(str(source), "source", files=SMALL_FILES)
    if not is_nemotron(folder):
        return None
    return find_folder(str(source), "source", files=files_of_tower(folder, with_projector=with_projector))


def _warn_of_other_tokens(config: RadioConfig) -> None:
    for adaptor in config.adaptor_configs:
        if adaptor.token_index >= config.num_cls_tokens:
            kind = "a register" if adaptor.token_index < config.num_prefix_tokens else "the first patch"
            warnings.warn(
                f"The summary head of {adaptor.name!r} reads token {adaptor.token_index}, {kind}, as in NVIDIA's code: "
                f"its slot lies behind the {config.num_cls_tokens} class tokens.",
                stacklevel=3,
            )


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


def verify(folder: Path, reference: Path, tolerance: float) -> list[OutputDifference]:
    """Open a converted folder, compare it with stored outputs and print the table.

    Returns:
        One comparison per stored output.

    Raises:
        ValueError: If an output differs by more than `tolerance`, or `tolerance` is no number of at least 0.
    """
    check_tolerance(tolerance)
    model = open_model(folder, device="cpu", as_backbone=True).backbone
    comparisons = compare_with_reference(model, reference)
    print(format_comparisons(comparisons, tolerance))
    largest = largest_difference(comparisons)
    if not largest <= tolerance:
        raise ValueError(f"Outputs differ from {str(reference)!r} by up to {largest:.2e}, more than {tolerance:g}.")
    return comparisons


def read_label(source: str) -> str:
    """Return the name of a source in a card: a Hub name in full, a local path by its last part."""
    return Path(source).name if Path(source).exists() else source
