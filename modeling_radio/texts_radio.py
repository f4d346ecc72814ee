"""Cleans texts as OpenAI's CLIP and Meta's Perception Encoder do before they are split into tokens."""

import html
from collections.abc import Iterable

from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


try:
    import ftfy
except ImportError:
    ftfy = None


def clean_text(text: str) -> str:
    """Return a text in lower case with repaired characters, without HTML entities, with single blanks.

    As `clean="lower"` of OpenCLIP's tokenizer: `ftfy.fix_text`, then `html.unescape` twice. A `tokenizer.json` cannot
    express the first.

    Raises:
        ImportError: If ftfy is not installed.
    """
    if ftfy is None:
        raise ImportError("The texts of this folder's text tower are cleaned by ftfy: run `pip install ftfy`.")
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def clean_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int) -> Tensor:
    """Return the tokens of cleaned texts, cut and padded with 0, `(num_texts, length)`."""
    cleaned = [clean_text(text) for text in texts]
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens = tokenizer(cleaned, return_attention_mask=True, **options)
    return tokens["input_ids"] * tokens["attention_mask"]  # `tokenizer.json` pads with the end token
