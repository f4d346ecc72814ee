"""Opening of model folders with checks: all weights are there, of the right shape, and finite."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.utils import logging as transformers_logging

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.errors import first_few
from modeling_radio.core.files import FolderKind
from modeling_radio.core.trust import MODEL_FILES, check_named_code
from modeling_radio.modeling_radio import SUMMARY_INDICES
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.stored_tensors import stored_tensors


_ADAPTER = "adapter_config.json"
_COUNTS = (SUMMARY_INDICES, ".num_batches_tracked")  # whole numbers
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_MAX_NAMES = 4


def _is_model(folder: Path) -> bool:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return config.get("model_type") == RadioConfig.model_type


MODEL_FOLDER = FolderKind(
    "RADIO model folders", (*MODEL_FILES, "__pycache__", ".gitattributes", "results.json"), _is_model
)
"""The only kind of folder that a command that writes a model may replace."""


class OpenedCheckpoint(NamedTuple):
    """A model in evaluation mode, and the keys of weights in its folder that are not the backbone's, sorted."""

    model: RadioModel
    other_keys: list[str]


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a folder's `config.json`; with `args` in it, the layout is that of NVIDIA's repositories.

    Raises:
        ValueError: If there is no such file, or it is no JSON object.
    """
    config_file = checkpoint / "config.json"
    if not config_file.is_file():
        raise ValueError(f"`checkpoint` must be a folder with a config.json, got {str(checkpoint)!r}.")
    return read_json(config_file)


@contextmanager
def without_reports() -> Iterator[None]:
    """Silence transformers' table of missing and unknown weights, for callers that check these themselves."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def open_checkpoint(checkpoint: Path) -> OpenedCheckpoint:
    """Open a folder of ours, or one in the layout of NVIDIA's Hub repositories.

    transformers fills in missing weights at random and converts any type to floats; here each such case is an error.

    Raises:
        ValueError: If it is neither, is damaged or an adapter, names code of others, or has weights that are missing,
            unknown, of another shape, not finite or no numbers that weights can be.
    """
    config = read_config(checkpoint)
    if (checkpoint / _ADAPTER).is_file():
        raise ValueError(
            f"`checkpoint` must be a whole model, got the adapter {str(checkpoint)!r}. Give the `merged/` that "
            "`radio finetune --merge` writes."
        )
    check_named_code(checkpoint)
    options = {}
    if "args" not in config:
        _check_stored(checkpoint, config)
        options = {"ignore_mismatched_sizes": True}  # reported below in one line
    with without_reports():
        model, loaded = RadioModel.from_pretrained(checkpoint, output_loading_info=True, **options)
    unexpected = sorted(loaded["unexpected_keys"])
    unknown = [key for key in unexpected if key.startswith("radio_model.")]
    misshapen = [f"{key} {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in loaded["mismatched_keys"]]
    check_fit(unknown, sorted(loaded["missing_keys"]), sorted(misshapen))
    _check_finite(checkpoint, model)
    return OpenedCheckpoint(model.eval(), [key for key in unexpected if key not in unknown])


def with_global_blocks(model: RadioModel, num_global: int) -> RadioModel:
    """Return a model with so many global blocks in ViTDet mode, in evaluation mode; weights are shared."""
    config = copy.deepcopy(model.config)
    config.vitdet_num_global, config.vitdet_num_windowed = num_global, None
    if config.navit is not None:
        config.navit = {**config.navit, "global_blocks": None}
    with torch.device("meta"):
        changed = RadioModel(config)
    changed.load_state_dict(model.state_dict(), assign=True)
    return changed.eval()


def with_windowed_blocks(model: RadioModel) -> RadioModel:
    """Return a model with some windowed blocks in ViTDet mode; weights are shared.

    Where all blocks of a shallow network attend globally, a third of them stays global, as in conversion. E-RADIO,
    RADIO1D and networks of a single block have no such windows and are returned as they are.
    """
    config = model.config
    is_possible = config.num_hidden_layers > 1 and not config.is_foreign and not config.num_mergings
    if config.has_windowed_blocks or not is_possible:
        return model
    return with_global_blocks(model, max(config.num_hidden_layers // 3, 1))


def _check_stored(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse another kind of model, and weights of types that transformers would silently convert to floats."""
    if config.get("model_type") != RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {str(checkpoint)!r} with the `model_type` "
            f"{config.get('model_type')!r:.60}."
        )
    strange = [
        f"{key} of {tensor.dtype}"
        for key, tensor in stored_tensors(checkpoint).items()
        if key.startswith("radio_model.") and not key.endswith(_COUNTS) and tensor.dtype not in _FLOATS
    ]
    if strange and config.get("quantization_config") is None:
        raise ValueError(
            f"The weights in {str(checkpoint)!r} must be floating-point numbers of at least 16 bits, but "
            f"{len(strange)} are not: {first_few(strange, _MAX_NAMES)}."
        )


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor consists of, such as torchao's 8-bit weights and their scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain_parts(vars(tensor)[name])]


def _check_finite(checkpoint: Path, model: RadioModel) -> None:
    broken = [
        key
        for key, tensor in model.state_dict().items()
        if not all(part.isfinite().all() for part in plain_parts(tensor))
    ]
    if broken:
        raise ValueError(
            f"The weights in {str(checkpoint)!r} must be finite, but {len(broken)} hold NaN or infinity: "
            f"{first_few(broken, _MAX_NAMES)}. They are damaged, or of a run that diverged."
        )
