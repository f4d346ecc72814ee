"""Parameters of a model around `radio_model` by their part of the network, and which of them decay."""

from torch import nn


ADAPTOR_PREFIX = "radio_model.adaptors."
BLOCK_PREFIX = "radio_model.model.blocks."

UNDECAYED_SUFFIXES = ("pos_embed", "cls_token.token")
"""The position table and the prefix tokens (AM-RADIO's cropped position embeddings, https://arxiv.org/abs/2312.06709)."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay acts on a parameter: on matrices, but not on position table and prefix tokens.

    The scales of a spectral reparametrization are matrices, so that they decay (PHI-S A.7).
    """
    return parameter.ndim > 1 and not name.endswith(UNDECAYED_SUFFIXES)


def trunk_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters outside of the adaptors."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(ADAPTOR_PREFIX)]
