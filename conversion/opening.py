"""Opens the checkpoint of an export, and refuses outputs that would replace something else."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_radio import RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.core.checkpoints import check_whole, open_checkpoint, read_config
from modeling_radio.core.errors import first_few
from modeling_radio.core.files import check_output
from modeling_radio.core.hub import find_folder
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.opening import MODELS, load
from modeling_radio.core.settings import Settings
from modeling_radio.heads_radio import RadioTaskModel
from modeling_radio.nvidia.fit import check_fit


_MAX_NAMES = 4
_OF_TEXTS = ("text_tower.", "logit_scale", "logit_bias")


class FolderSettings(Settings):
    """Settings of a conversion from one folder to another.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: Folder to write.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    output: Path
    overwrite: bool = False


def check_file_output(path: Path, checkpoint: Path, *, endings: tuple[str, ...], overwrite: bool) -> None:
    """Refuse an output file that would replace the checkpoint or a file of another kind, before any long work.

    Args:
        path: Output file.
        checkpoint: Folder that is read. Earlier exports in it may be replaced.
        endings: Endings of the names of such files.
        overwrite: Whether to replace an earlier one.

    Raises:
        ValueError: If `path` is or holds part of the checkpoint, has another ending, is a folder, or exists and
            `overwrite` is off.
    """
    parts = (each for each in checkpoint.glob("*") if not each.name.endswith(endings))
    check_output(path, overwrite=overwrite, inputs=[checkpoint, *parts])
    if not path.name.endswith(endings):
        raise ValueError(f"`output` must end in {' or '.join(endings)}, got {str(path)!r}. Name another output.")
    if path.is_dir():
        raise ValueError(f"`output` must be a file, got the folder {str(path)!r}. Name another output.")


def open_model(checkpoint: Path, *, with_texts: bool = False, adaptors: Sequence[str] | None = None) -> RadioModel:
    """Open a folder of ours, or one in the layout of NVIDIA's Hub repositories.

    Other parts, such as the head of a task, are left out with a warning.

    Args:
        checkpoint: The folder, or the name of a repository on the Hub.
        with_texts: Whether the caller exports the text tower too: then there is no warning about it.
        adaptors: Those that the caller exports; NVIDIA's folder gets the ones that it lacks from its `.pth.tar`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If it is quantized, or as `modeling_radio.core.checkpoints.open_checkpoint`.
    """
    checkpoint = find_folder(checkpoint, "checkpoint", adaptors=adaptors or ())
    config = read_config(checkpoint)
    if "args" in config:
        return convert(checkpoint)
    check_not_quantized(checkpoint, config)
    model, others = open_checkpoint(checkpoint)
    if with_texts:
        others = [key for key in others if not key.startswith(_OF_TEXTS)]
    _warn_of_others(checkpoint, others, has_text_tower=not with_texts and model.config.text_tower is not None)
    return model


def open_task_model(checkpoint: Path) -> RadioTaskModel:
    """Open a saved task model with its head.

    Returns:
        The model in evaluation mode, of the saved class.

    Raises:
        ValueError: If it holds no task model, is quantized, or has weights that are missing, unknown, of another shape
            or not finite.
    """
    checkpoint = find_folder(checkpoint, "checkpoint")
    config = read_config(checkpoint)
    (name,) = (config.get("architectures") or [None])[:1]
    known = [each for each, model in MODELS.items() if issubclass(model, RadioTaskModel)]
    if name not in known:
        raise ValueError(
            f"`checkpoint` must hold a model of a task for `head`, got {str(checkpoint)!r} of the class {name!r}. "
            f"Known are {', '.join(known)}."
        )
    check_not_quantized(checkpoint, config)
    check_whole(checkpoint)
    model, unexpected, missing, misshapen = load(MODELS[name], checkpoint)
    check_fit(unexpected, missing, list(misshapen.values()))
    return model.eval()


def check_not_quantized(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose `config.json`, given parsed, tells that its weights are quantized.

    Raises:
        ValueError: If they are.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"{str(checkpoint)!r} is quantized, which no other format has. Export it before quantizing it."
        )


def _warn_of_others(checkpoint: Path, keys: Iterable[str], *, has_text_tower: bool) -> None:
    parts = sorted({key.partition(".")[0] for key in keys} | ({"text_tower"} if has_text_tower else set()))
    if parts:
        shown = first_few(parts, _MAX_NAMES)
        warnings.warn(f"{str(checkpoint)!r} holds more than RADIO, which is left out: {shown}.", stacklevel=3)
