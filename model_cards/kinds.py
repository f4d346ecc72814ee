"""Cards of folders that hold no model trained here: adapters, and converted checkpoints of NVIDIA's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from pydantic import ConfigDict
from transformers.utils import ADAPTER_CONFIG_NAME

from core.files import write_text
from model_cards.licenses import SOURCE_CODE_LICENSE, License, nvidia_license
from model_cards.metadata import HUB_ID, card_data
from model_cards.rendering import render_card
from model_cards.results import load_typed
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


CONVERTED = ", converted"
"""Ends the title."""
FILE = "conversion.json"
"""Lies in a converted folder, so that its card can be written again; a folder that was trained from it has none."""


@dataclass(frozen=True)
class Conversion:
    """What a folder was converted from.

    Attributes:
        source: How the card names NVIDIA's checkpoint; a Hub id is named in the metadata too.
        text_source: How it names the checkpoint of a packed text tower.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: str
    text_source: str | None = None

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def find(cls, folder: Path) -> Conversion | None:
        """Return what a folder was converted from, if it was.

        Raises:
            ValueError: If the file says what none can.
        """
        return load_typed(cls, folder / FILE, "file of `conversion.from_nvidia`") if (folder / FILE).is_file() else None


def build_converted_card(config: RadioConfig, conversion: Conversion, source: str, shown: dict[str, Any]) -> ModelCard:
    """Return the card: where the weights come from, whose license they have, what opens them.

    Args:
        config: The checkpoint's configuration.
        conversion: What it was made from.
        source: What the code opens.
        shown: Title, license and results.

    Raises:
        ValueError: If another license is asked for than NVIDIA's, where that is known.
    """
    license = _license(config.version, shown["license"])
    bases = [name for name in (conversion.source, conversion.text_source) if name and "/" in name]
    title = f"{shown['title'].removesuffix(CONVERTED)}{CONVERTED}"
    data = card_data(
        config,
        title,
        license,
        tags=["feature-extraction"],
        base_models=bases,
        relation="quantized",
        results=shown["results"],
    )
    return render_card(
        "converted.md",
        config,
        data,
        source,
        **shown | {"title": title, "license": license},
        is_noncommercial=license == SOURCE_CODE_LICENSE,
        is_nvidias=nvidia_license(config.version) is not None,
        conversion=conversion,
    )


def _license(version: str | None, asked: License | None) -> License | None:
    """Return the license that the weights keep."""
    known = nvidia_license(version)
    if known is not None and asked is not None and asked != known:
        raise ValueError(
            f"`license` must be left out where weights of NVIDIA's were converted: they keep {known.name}, got "
            f"{asked.name or asked.id!r}."
        )
    return known or asked
