"""The words of a page: a text tower as an ONNX graph, its tokenizer, and their description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import Dim
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.conversion.graphs.files import export_graph, write_graph
from modeling_radio.core.opening import open_model
from modeling_radio.zero_shot_radio import SIMPLE_TEMPLATES, fill_templates


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SAMPLE_WORDS = ("animal", "sky", "a wooden house", "Golden Gate Bridge", "naïve café, 2nd floor!")
"""Texts on which the tower's precisions are compared. Our choice: short and long, with difficult characters."""


class OnnxTexts(nn.Module):
    """Tokens `(num_texts, length)` to embeddings `(num_texts, text_dim)`, without a mask as in `embed_texts`."""

    names = ("text_embeds",)

    def __init__(self, model: RadioForZeroShotImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        embeds: Any = self.model.get_text_features(input_ids, return_dict=True).pooler_output
        return (embeds,)


@dataclass(frozen=True)
class Texts:
    """A model's text side.

    Attributes:
        model: The model with the tower.
        tokenizer: Tokenizer of its folder, with a `tokenizer.json`.
    """

    model: RadioForZeroShotImageClassification
    tokenizer: PreTrainedTokenizerBase

    @property
    def sample_tokens(self) -> Tensor:
        """Tokens of prompts of `SAMPLE_WORDS`, `(num_texts, length)`."""
        prompts = [prompt for word in SAMPLE_WORDS for prompt in fill_templates(word, SIMPLE_TEMPLATES)]
        return self.tokens(prompts)

    def tokens(self, prompts: list[str]) -> Tensor:
        """Return the tokens of texts, padded as `embed_texts` pads them, `(num_texts, length)`."""
        padding = "max_length" if self.model.use_sigmoid else True
        length = self.model.max_text_length
        options: dict[str, Any] = {"padding": padding, "truncation": True, "max_length": length}
        return self.tokenizer(prompts, return_tensors="pt", **options)["input_ids"]

    def describe(self) -> dict[str, Any]:
        """Return the page's description: prompts, padding, width and scale."""
        padding = {"id": self.tokenizer.pad_token_id, "to": "max_length" if self.model.use_sigmoid else "longest"}
        return {
            "templates": list(SIMPLE_TEMPLATES),
            "max_length": self.model.max_text_length,
            "padding": padding,
            "width": self.model.text_width,
            "scale": self.model.logit_scale.exp().item(),
        }


def open_texts(checkpoint: Path) -> Texts:
    """Open the text side of a folder that has one.

    Raises:
        ValueError: If it has no text side, its tokenizer cannot be opened or the page cannot read it.
    """
    opened = open_model(checkpoint, device="cpu")
    model, tokenizer = opened.zero_shot, opened.tokenizer
    if model is None or tokenizer is None:
        raise ValueError(f"`checkpoint` must have a text tower, got {str(checkpoint)!r}. Leave words out: --no-words.")
    model.set_attn_implementation("eager")  # the others cannot be exported
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {str(checkpoint)!r} must have a tokenizer.json, which browsers read, got "
            f"{type(tokenizer).__name__}. Save it as a fast one, or leave words out: --no-words."
        )
    return Texts(model, tokenizer)


def write_tower(texts: Texts, path: Path) -> OnnxTexts:
    """Export the text tower in float32, for any number and length of texts; return the exported module."""
    longest = texts.model.max_text_length
    length = None if texts.model.use_sigmoid else Dim("length", min=2, max=longest)
    shapes = {"input_ids": {0: Dim("texts", min=1), **({} if length is None else {1: length})}}
    tower = OnnxTexts(texts.model).eval()
    write_graph(export_graph(tower, {"input_ids": texts.sample_tokens}, tower.names, shapes).model, path)
    return tower


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the two tokenizer files that the page reads."""
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in TOKENIZER_FILES:
            path.unlink()
