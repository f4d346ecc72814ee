"""Folders of backbones, and backbones with other windows."""

import copy
from pathlib import Path

import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.files import FolderKind
from modeling_radio.core.trust import MODEL_FILES


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
