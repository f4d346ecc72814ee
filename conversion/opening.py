"""Opens the folder that an export reads: all of its weights are there, and are numbers of one kind."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from conversion.from_nvidia import convert
from conversion.nvidia.tensor_checks import check_finite
from foundation.files import check_output
from modeling_radio import RadioModel
from modeling_radio.network_radio import SUMMARY_TOKENS
from modeling_radio.nvidia_folder_radio import check_fit, read_json, stored_tensors


_ADAPTER = "adapter_config.json"
_MAX_NAMES = 4
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


def check_file_output(path: Path, checkpoint: Path, *, endings: tuple[str, ...], overwrite: bool) -> None:
    """Refuse an output file that would replace what is read or what no export writes, before any long work.

    Args:
        path: File to be written.
        checkpoint: Folder that is read. Earlier exports in it may be replaced.
        endings: How the names of such files end.
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


def open_model(checkpoint: Path) -> RadioModel:
    """Open a folder of ours, or one in the layout of NVIDIA's Hub repositories.

    What a folder has besides, such as the head of a task, is left out with a warning.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If it is neither, is damaged or an adapter, or has weights that are missing, unknown, of another
            shape, not finite or no floating-point numbers.
    """
    config_file = checkpoint / "config.json"
    if not config_file.is_file():
        raise ValueError(f"No checkpoint at {str(checkpoint)!r}: it must be a folder with config.json and weights.")
    config = read_json(config_file)
    if "args" in config:
        return convert(checkpoint)
    if (checkpoint / _ADAPTER).is_file():
        raise ValueError(
            f"{str(checkpoint)!r} is an adapter, which no other format has. Merge it into its base first: "
            "`training.finetune --merge` does so at the end."
        )
    _check_stored(checkpoint, config)
    try:
        model, loaded = RadioModel.from_pretrained(checkpoint, output_loading_info=True, ignore_mismatched_sizes=True)
    except SafetensorError as error:
        raise ValueError(f"The weights in {str(checkpoint)!r} are damaged: {error}.") from error
    unknown = sorted(loaded["unexpected_keys"])
    others = [key for key in unknown if not key.startswith("radio_model.")]
    misshapen = [f"{key} {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in loaded["mismatched_keys"]]
    check_fit([key for key in unknown if key not in others], sorted(loaded["missing_keys"]), sorted(misshapen))
    _warn_of_others(checkpoint, others, has_text_tower=model.config.text_tower is not None)
    check_finite(model.state_dict(), {})
    return model.eval()


def _check_stored(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are no floating-point numbers where they lie: transformers would make such of anything."""
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"{str(checkpoint)!r} is quantized, which no other format has. Export it before quantizing it."
        )
    strange = [
        f"{key} of {tensor.dtype}"
        for key, tensor in stored_tensors(checkpoint).items()
        if key.startswith("radio_model.") and key != SUMMARY_TOKENS and tensor.dtype not in _FLOATS
    ]
    if strange:
        raise ValueError(
            f"The weights in {str(checkpoint)!r} must be floating-point numbers of at least 16 bits, got "
            f"{', '.join(strange)}."
        )


def _warn_of_others(checkpoint: Path, keys: Iterable[str], *, has_text_tower: bool) -> None:
    parts = sorted({key.partition(".")[0] for key in keys} | ({"text_tower"} if has_text_tower else set()))
    if parts:
        shown = ", ".join(parts[:_MAX_NAMES]) + (", ..." if len(parts) > _MAX_NAMES else "")
        warnings.warn(f"{str(checkpoint)!r} holds more than RADIO, which is left out: {shown}.", stacklevel=3)
