"""A classifier and a sentence encoder small enough for tests of words."""

import torch
from tiny_sentences import build_sentence_encoder
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizer

from modeling_radio import RadioConfig, RadioModel
from training.evaluation.models.pretrained import SentenceEncoder
from training.teachers.base import Teacher
from training.teachers.embedded import EfficientNetLiteTeacher


NAMES = ["cat", "dog", "grass", "ice", "bird", "fish", "coin", "tree", "rock", "sky", "sea", "bug"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "this", "is", ".", *NAMES]
SUMMARY_DIM = 6


class TinyNetwork(nn.Module):
    """Mixes colors; its classes look for mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, SUMMARY_DIM, 1)
        self.classifier = nn.Linear(SUMMARY_DIM, len(NAMES))

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.mix(pixels), 32)

    def forward_intermediates(self, pixels: torch.Tensor, indices: list[int]):
        mixed = self.mix(pixels)
        return F.avg_pool2d(mixed, 32), [F.avg_pool2d(mixed[:, :4], 16)]


class TinyClassifier(EfficientNetLiteTeacher):
    """The teacher with that network."""

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        Teacher.__init__(self, name, summary_dim=SUMMARY_DIM, feature_dim=4, patch_size=16)
        self.network = TinyNetwork()
        self.freeze()


class TinySentences(SentenceEncoder):
    """A random BERT of sixteen numbers, with its own kind of tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
        self.model = build_sentence_encoder()


def build_student(**changes: object) -> RadioModel:
    """Return a random student with an adaptor for that teacher and one for another."""
    own = {"name": "efficientnet-lite0", "summary_dim": SUMMARY_DIM, "feature_dim": 4, "hidden_size": 24, **changes}
    other = {"name": "dino", "token_index": 1, "summary_dim": 8, "feature_dim": 8, "hidden_size": 24}
    config = RadioConfig.from_preset("radio-test", adaptors=[own, other], preferred_resolution=[64, 64])
    return RadioModel(config).eval()
