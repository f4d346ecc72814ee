"""Fills the card of an adapter folder, which holds no weights but those that were learned beside a base."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import ADAPTER_CONFIG_NAME

from model_cards.metadata import HUB_ID, card_data
from model_cards.rendering import render_card
from modeling_radio import RadioConfig


BASE_PLACEHOLDER = "ORG/BASE"
"""Stands for a base that is a folder of one machine, until `training.publish --base` names its repository."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter of peft."""
    return (folder / ADAPTER_CONFIG_NAME).is_file()


def build_adapter_card(folder: Path, config: RadioConfig, source: str, shown: dict[str, Any]) -> ModelCard:
    """Return the card of an adapter.

    Args:
        folder: With peft's two files and the `config.json` of the task model.
        config: Of the task model.
        source: What the code opens.
        shown: Title, license and results.
    """
    settings = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
    named = str(settings.get("base_model_name_or_path"))
    base = named if "/" in named and HUB_ID.fullmatch(named) else BASE_PLACEHOLDER
    kind = "DoRA" if settings.get("use_dora") else "rsLoRA" if settings.get("use_rslora") else "LoRA"
    data = card_data(
        config,
        shown["title"],
        shown["license"],
        tags=["lora", "peft"],
        base_models=[base],
        relation="adapter",
        results=shown["results"],
        library="peft",
    )
    return render_card(
        "adapter.md",
        config,
        data,
        source,
        **shown,
        base=base,
        kind=kind,
        rank=settings.get("r"),
        auto_class=_auto_class(config),
    )


def _auto_class(config: RadioConfig) -> str:
    """Return the Auto class that opens the task model whose configuration stands beside an adapter."""
    (name,) = (config.architectures or ["RadioModel"])[:1]
    return f"AutoModel{name.removeprefix('Radio').removeprefix('Model')}"
