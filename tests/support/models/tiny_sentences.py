"""A sentence encoder small enough for tests, and a text tower of it."""

from tiny_texts import TEXT
from torch import nn
from transformers import BertConfig, BertModel

from modeling_radio.zero_shot_radio import SentenceTower


def build_sentence_encoder() -> BertModel:
    """Return a tiny random BERT, without dropout, so that gradients can be compared."""
    shape = {name: value for name, value in TEXT.items() if not name.endswith("token_id")}
    config = BertConfig(**shape, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertModel(config).eval()


def build_sentence_tower(width: int) -> SentenceTower:
    """Return that encoder with a random map to embeddings of a width."""
    encoder = build_sentence_encoder()
    return SentenceTower.from_parts(encoder, nn.Linear(encoder.config.hidden_size, width), max_length=16).eval()
