"""Normalisers that some RADIOv2.5 checkpoints apply to features: the inverse of PHI-S, learned from data."""

import torch
from torch import Tensor, nn

from .configuration_radio import RadioConfig


class RadioFeatureNormalizer(nn.Module):
    """Shifts and rotates final features, `(..., hidden)`, into a standardised space."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(config.hidden_size))
        self.register_buffer("tx", torch.empty(config.hidden_size, config.hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.tx.T


class RadioIntermediateNormalizer(nn.Module):
    """The same for intermediate features: a mean, a scale and a rotation for each layer (or one shared rotation)."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        num_layers, size = config.num_intermediate_normalizers, config.hidden_size
        rotation_shape = (num_layers, size, size) if config.intermediate_rotation_per_layer else (size, size)
        self.register_buffer("alphas", torch.empty(num_layers))
        self.register_buffer("means", torch.empty(num_layers, size))
        self.register_buffer("rotation", torch.empty(rotation_shape))

    def forward(self, features: Tensor, blocks: list[int]) -> Tensor:
        """Standardise features that average the outputs of `blocks`: so do mean and scale; the last one rotates."""
        rotation = self.rotation if self.rotation.ndim == 2 else self.rotation[blocks[-1]]
        alpha, mean = self.alphas[blocks].mean(), self.means[blocks].mean(dim=0)
        return alpha * (features - mean) @ rotation.T
