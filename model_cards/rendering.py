"""Fills the templates of cards."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.core.settings import read_yaml
from modeling_radio.core.tables import one_line
from modeling_radio.engines import engine_verdicts
from modeling_radio.model_cards.metadata import pipeline_tag
from modeling_radio.modeling_radio import POSITIONS
from modeling_radio.native import native_differences


PLACEHOLDER = "ORG/NAME"
"""Name in the code of an unpublished card; `radio publish` replaces it."""
UNPUBLISHED = (
    f"`{PLACEHOLDER}` stands for the name on the Hub. Before it is published, use the path of this folder.\n\n"
)
"""Text above the code of an unpublished card; `radio publish` removes it."""
_SIGNATURE = "\n<!-- By radio card; SHA-256 of the text above: {} -->\n"
"""Last line of a written card, an HTML comment, which pages do not show; `radio publish` removes it."""
_SIGNED = re.compile(re.escape(_SIGNATURE).replace(r"\{\}", r"\w+") + r"\Z")
TEMPLATES = Path(__file__).parent / "templates"
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word means nothing
_AT_START = re.compile(r"[#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](\s|$))")  # begins headings, rules and lists


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of a checkpoint by part.

    Attributes:
        backbone: Backbone without the position table, as in the papers.
        position_table: Position table alone.
        adaptors: Adaptors by name.
    """

    backbone: int
    position_table: int
    adaptors: dict[str, int]


def count_parameters(config: RadioConfig) -> ParameterCounts:
    """Count the parameters of the network that a configuration describes, without allocating it."""
    with torch.device("meta"):
        network = RadioModel(config).radio_model
    backbone = _num_parameters(network.model)
    tables = [parameter for name, parameter in network.named_parameters() if POSITIONS.endswith(f".{name}")]
    position_table = sum(table.numel() for table in tables)  # E-RADIO has none
    adaptors = {name: _num_parameters(network.adaptors[name]) for name in network.adaptors}
    return ParameterCounts(backbone - position_table, position_table, adaptors)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Raw(str):
    """Markdown that templates show unescaped, unlike all other texts."""


def render_card(template: str, config: RadioConfig, card_data: ModelCardData, source: str, **values: Any) -> ModelCard:
    """Return a card.

    Texts are escaped: names and remarks can neither add headings nor break tables. The templates' filters are `code`
    for a code span, `literal` for a text in Python, `cells` for cells of a table row.

    Args:
        template: Name of a file in `templates/`. It may include `architecture.md`, the network with its
            inputs and outputs, and `usage.md`, the code that opens a checkpoint.
        config: The checkpoint's configuration.
        card_data: The card's metadata.
        source: Hub id that the code opens.
        values: Other values of the template; a name without a value is an error.
    """
    text = render_part(
        template,
        config=config,
        card_data=Raw(card_data.to_yaml()),
        source=source,
        unpublished=Raw(UNPUBLISHED if source == PLACEHOLDER else ""),
        engines=[verdict for verdict in engine_verdicts(config) if verdict.engine != "transformers"],
        native_differences=[Raw(sentence) for sentence in native_differences(config)],
        task=pipeline_tag(config),
        **_architecture(config),
        **values,
    )
    return ModelCard(text)


def render_part(template: str, **values: Any) -> str:
    """Return a filled template, a card or a part of one; arguments as in `render_card`."""
    environment = jinja2.Environment(  # noqa: S701  Markdown, not HTML: `finalize` escapes
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: escaped(value) if isinstance(value, str) else value,
    )
    environment.filters.update(code=code_span, literal=_literal, cells=_cells, raw=Raw)
    return environment.get_template(template).render(**values)


def read_card(text: str) -> ModelCard:
    """Return the card with a text of unknown origin.

    Raises:
        ValueError: If its metadata cannot be read.
    """
    metadata = REGEX_YAML_BLOCK.search(text)
    try:
        read_yaml(metadata[2] if metadata else "")  # bounded, as the Hub's own reader is not
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"README.md has metadata that cannot be read: {' '.join(str(error).split())}.") from error


def signed(text: str) -> str:
    """Return the text of a card with its checksum, by which `is_edited` sees whether somebody changed it."""
    return text + _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest())


def unsigned(text: str) -> str:
    """Return the text of a card without its checksum."""
    return _SIGNED.sub("", text)


def is_edited(card: Path) -> bool:
    """Return whether a file is not exactly a text that `signed` returned."""
    text = card.read_text(encoding="utf-8", errors="replace")
    return signed(unsigned(text)) != text


def _architecture(config: RadioConfig) -> dict[str, Any]:
    """Return the values of `architecture.md` beyond the configuration."""
    height, width = config.preferred_resolution
    rows, cols = height // config.patch_size, width // config.patch_size
    return {
        "parameters": count_parameters(config),
        "height": height,
        "width": width,
        "rows": rows,
        "cols": cols,
        "most_global_tokens": config.count_global_tokens(Resolution(rows, cols)),
    }


def escaped(text: str) -> Raw:
    """Return a text as one line of Markdown in which nothing has a special meaning."""
    if isinstance(text, Raw):
        return text
    line = _SPECIAL.sub(lambda match: f"\\{match[0]}", one_line(text))
    return Raw(_AT_START.sub(_without_meaning, line, count=1) if _AT_START.match(line) else line)


def code_span(text: str) -> Raw:
    """Return a text as a code span, also for a cell of a table."""
    line = one_line(str(text)).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return Raw(f"{fence}{space}{line}{space}{fence}")


def _without_meaning(match: re.Match[str]) -> str:
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


def _literal(text: str) -> Raw:
    """Return a text as a Python literal."""
    return Raw(json.dumps(str(text), ensure_ascii=False))


def _cells(texts: list[str]) -> Raw:
    return Raw(" | ".join(escaped(text) for text in texts))
