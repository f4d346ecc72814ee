"""What logits of an image classifier say, by its configuration: the rule of transformers' `image-classification`."""

from typing import Literal

from torch import Tensor

from .configuration_radio import RadioConfig


Reading = Literal["none", "sigmoid", "softmax"]
"""What makes scores of logits, by transformers' names; "none" of numbers, which regression gives."""


def reading_of(config: RadioConfig) -> Reading:
    """Return what makes scores of the logits: a single label is a yes or no, unless it is a number."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def tempered(logits: Tensor, config: RadioConfig) -> Tensor:
    """Return logits `(..., num_labels)` divided by the temperature of the configuration, numbers as they are."""
    return logits if reading_of(config) == "none" else logits / config.temperature


def class_scores(logits: Tensor, config: RadioConfig) -> Tensor:
    """Return the score of each label, float32: its probability in [0, 1], or the number of a regression.

    Args:
        logits: `(..., num_labels)`.
        config: Of the classifier.

    Returns:
        `(..., num_labels)`.
    """
    scores, reading = tempered(logits.float(), config), reading_of(config)
    if reading == "none":
        return scores
    return scores.sigmoid() if reading == "sigmoid" else scores.softmax(dim=-1)
