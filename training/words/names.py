"""A map from texts to the rows of a classifier, learned from the names of its classes.

A row is the summary that its class wants to see, so a map from the embeddings of names to rows speaks of any other text
as a classifier would that had a class for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from modeling_radio.text_radio import PLAIN_TEMPLATES, SIMPLE_TEMPLATES
from training.evaluation.models.sentences import SentenceEncoder
from training.words.ridge import Pairs, cross_validate, fit_maps


PROMPTS = (*PLAIN_TEMPLATES, "This is a photo of {}.", *SIMPLE_TEMPLATES)
"""In which the map sees each name, so that what they say besides does not matter. Our choice: those that it will be
asked in, by `embed_classes` and by the stock pipeline."""
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-10, 1))
"""Our choice: from a map that follows every name to one that has almost only the mean; the best lies inside."""


@dataclass(frozen=True)
class LearnedMap:
    """From embeddings of texts to the space of summaries.

    Attributes:
        layer: The map.
        pairs: Embeddings of the names, and their rows.
        penalty: That was chosen.
        curve: How well classes were recognized that a map had not seen, for each penalty; see `cross_validate`.
    """

    layer: nn.Linear
    pairs: Pairs
    penalty: float
    curve: dict[float, float]


def learn_map(encoder: SentenceEncoder, names: Sequence[str], rows: Tensor) -> LearnedMap:
    """Learn a map from names to the rows of a classifier; the penalty is chosen on names that were left out.

    Args:
        encoder: Of the texts.
        names: One for each class.
        rows: Weights of the classifier, `(num_classes, summary_dim)`.

    Raises:
        ValueError: If there are not as many names as rows, or too few for cross-validation.
    """
    if len(names) != len(rows):
        raise ValueError(f"`names` must be {len(rows)}, one for each row of the classifier, got {len(names)}.")
    prompts = [prompt.replace("{}", name) for name in names for prompt in PROMPTS]
    pairs = Pairs(encoder.encode(prompts).unflatten(0, (len(names), len(PROMPTS))), rows)
    curve = dict(zip(PENALTIES, cross_validate(pairs, PENALTIES), strict=True))
    penalty = max(PENALTIES, key=curve.__getitem__)
    (layer,) = fit_maps(pairs, [penalty])
    return LearnedMap(layer, pairs, penalty, curve)
