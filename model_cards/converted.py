"""Writes the short card of a checkpoint of NVIDIA's that was converted and not trained."""

from pathlib import Path

from huggingface_hub import ModelCardData

from foundation.files import write_text
from model_cards.rendering import render_card
from modeling_radio import RadioConfig


def write_converted_card(folder: Path, config: RadioConfig, nvidia_source: str, text_source: str | None = None) -> None:
    """Write `README.md` into a folder: where the weights come from, whose license they have, what opens them.

    Args:
        folder: Of the converted checkpoint; its name stands in the code.
        config: The checkpoint's configuration.
        nvidia_source: How the card names NVIDIA's checkpoint.
        text_source: How the card names the checkpoint of a packed text tower.
    """
    card_data = ModelCardData(library_name="transformers", license="other", license_name="see-source", tags=["radio"])
    card = render_card(
        "converted.md",
        config,
        card_data,
        folder.name,
        title=config.version or "RADIO",
        nvidia_source=nvidia_source,
        text_source=text_source,
    )
    write_text(folder / "README.md", str(card))
