"""Writes the card of a checkpoint of NVIDIA's that was converted and not trained."""

from pathlib import Path

from foundation.files import write_text
from model_cards.licenses import SOURCE_CODE_LICENSE, nvidia_license
from model_cards.metadata import card_data
from model_cards.rendering import PLACEHOLDER, render_card
from modeling_radio import RadioConfig


def write_converted_card(folder: Path, config: RadioConfig, nvidia_source: str, text_source: str | None = None) -> None:
    """Write `README.md` into a folder: where the weights come from, whose license they have, what opens them.

    Args:
        folder: Of the converted checkpoint.
        config: The checkpoint's configuration.
        nvidia_source: How the card names NVIDIA's checkpoint; a Hub id is named in the metadata too.
        text_source: How the card names the checkpoint of a packed text tower.
    """
    title, license = config.version or "RADIO", nvidia_license(config.version)
    bases = [source for source in (nvidia_source, text_source) if source and "/" in source]
    data = card_data(config, title, license, tags=["feature-extraction"], base_models=bases, relation="quantized")
    card = render_card(
        "converted.md",
        config,
        data,
        PLACEHOLDER,
        title=title,
        license=license,
        is_noncommercial=license is SOURCE_CODE_LICENSE,
        nvidia_source=nvidia_source,
        text_source=text_source,
    )
    write_text(folder / "README.md", str(card))
