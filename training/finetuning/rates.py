"""Peaks of the learning rate where the settings give none: by task, way of tuning and the backbone's width."""

from __future__ import annotations

from modeling_radio import RadioConfig
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.registry import TASK_CLASSES


REFERENCE_WIDTH = 768
"""Channels of a ViT-B, for which tasks give their rates."""


def learning_rates(settings: FinetuneSettings, config: RadioConfig) -> tuple[float, float]:
    """Return the peaks of the backbone (or its adapters) and of the head.

    Args:
        settings: Of the run; what they give is taken as it is.
        config: Of the run's model.
    """
    backbone, head, task = settings.learning_rate, settings.head_learning_rate, TASK_CLASSES[settings.task]
    if backbone is None:
        backbone = task.adapter_learning_rate if settings.uses_adapter else task.full_learning_rate
        backbone = scaled_rate(backbone, config.hidden_size)
    if head is None:
        head = task.head_learning_rate
        head = scaled_rate(head, config.hidden_size) if task.has_linear_head(config) else head
    return backbone, head


def scaled_rate(rate: float, width: int) -> float:
    """Return the learning rate for matrices with `width` inputs that does what `rate` does in a ViT-B.

    Adam moves each weight by about the rate, whatever the gradient, and so what a matrix answers by as many times that
    as it has inputs.

    References:
        Yang et al., Tensor Programs V, table 3. https://arxiv.org/abs/2203.03466
    """
    return rate * REFERENCE_WIDTH / width
