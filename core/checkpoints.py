"""Folders of backbones, and backbones with other windows."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.files import FolderKind
from modeling_radio.core.opening import TRUNK, load
from modeling_radio.core.trust import MODEL_FILES, check_named_code
from modeling_radio.nvidia.fit import check_fit


_ADAPTER = "adapter_config.json"


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


def open_checkpoint(checkpoint: Path) -> OpenedCheckpoint:
    """Open a folder of ours, or one in the layout of NVIDIA's Hub repositories.

    Raises:
        ValueError: As `check_whole`, or if weights are missing, unknown, of another shape, not finite or no
            floating-point numbers.
    """
    check_whole(checkpoint)
    model, unexpected, missing, misshapen = load(RadioModel, checkpoint)
    unknown = [key for key in unexpected if key.startswith(TRUNK)]
    check_fit(unknown, missing, list(misshapen.values()))
    return OpenedCheckpoint(model.eval(), [key for key in unexpected if key not in unknown])


def check_whole(checkpoint: Path) -> None:
    """Refuse a folder that holds no model of ours.

    Raises:
        ValueError: If it is neither of ours nor in NVIDIA's layout, is an adapter, or names code of others.
    """
    config = read_config(checkpoint)
    if (checkpoint / _ADAPTER).is_file():
        raise ValueError(
            f"`checkpoint` must be a whole model, got the adapter {str(checkpoint)!r}. Give the `merged/` that "
            "`radio finetune --merge` writes."
        )
    check_named_code(checkpoint)
    if "args" not in config and config.get("model_type") != RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {str(checkpoint)!r} with the `model_type` "
            f"{config.get('model_type')!r:.60}."
        )


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
