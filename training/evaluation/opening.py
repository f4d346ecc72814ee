"""Opens the folder that is measured: nothing in it is made up, so that no number is one of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.network_radio import SUMMARY_TOKENS
from modeling_radio.nvidia_folder_radio import check_fit, read_json, stored_tensors


_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


def open_checkpoint(checkpoint: Path) -> RadioModel:
    """Open a folder of ours, or one in the layout of NVIDIA's Hub repositories.

    Returns:
        The model in evaluation mode, without the head of a task.

    Raises:
        ValueError: If it is neither, is damaged or an adapter, or has weights that are missing, unknown, of another
            shape, not finite or no numbers that weights can be.
    """
    config_file = checkpoint / "config.json"
    if not config_file.is_file():
        raise ValueError(f"`checkpoint` must be a folder with a config.json, got {str(checkpoint)!r}.")
    if (checkpoint / "adapter_config.json").is_file():
        raise ValueError(
            f"`checkpoint` must be a whole model, got the adapter {str(checkpoint)!r}. Give the `merged/` that "
            "`training.finetune --merge` writes."
        )
    config = read_json(config_file)
    is_nvidias = "args" in config
    if not is_nvidias:
        _check_stored(checkpoint, config)
    options = {} if is_nvidias else {"ignore_mismatched_sizes": True}  # told below in one line
    try:
        model, loaded = RadioModel.from_pretrained(checkpoint, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights in {str(checkpoint)!r} are damaged: {error}.") from error
    unknown = [key for key in loaded["unexpected_keys"] if key.startswith("radio_model.")]
    misshapen = [f"{key} {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in loaded["mismatched_keys"]]
    check_fit(sorted(unknown), sorted(loaded["missing_keys"]), sorted(misshapen))
    _check_finite(checkpoint, model)
    return model.eval()


def _check_stored(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse another kind of model, and weights of types of which transformers would silently make floats."""
    if config.get("model_type") != RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {str(checkpoint)!r} with the `model_type` "
            f"{config.get('model_type')!r:.60}."
        )
    strange = [
        f"{key} of {tensor.dtype}"
        for key, tensor in stored_tensors(checkpoint).items()
        if key.startswith("radio_model.") and key != SUMMARY_TOKENS and tensor.dtype not in _FLOATS
    ]
    if strange and config.get("quantization_config") is None:
        raise ValueError(
            f"The weights in {str(checkpoint)!r} must be floating-point numbers of at least 16 bits, but "
            f"{len(strange)} are not, such as {strange[0]}."
        )


def _check_finite(checkpoint: Path, model: RadioModel) -> None:
    broken = [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"The weights in {str(checkpoint)!r} must be finite, but {len(broken)} are not, such as {broken[0]}: they "
            "are damaged, or of a run that diverged."
        )
