"""Fills the templates of cards."""

from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from modeling_radio import RadioConfig


TEMPLATES = Path(__file__).parent / "templates"


def render_card(template: str, config: RadioConfig, card_data: ModelCardData, source: str, **values: Any) -> ModelCard:
    """Return a card.

    Args:
        template: Name of a file in `templates/`. It may include `usage.md`, the code that opens a checkpoint.
        config: The checkpoint's configuration.
        card_data: The card's metadata.
        source: What the code opens: a Hub id or a path.
        values: What else the template names; a name without a value is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template(template).render(
        config=config,
        card_data=card_data.to_yaml(),
        source=source,
        native_differences=config.native_differences(),
        **values,
    )
    return ModelCard(text)
