"""What standardizes the backbone's own features, in checkpoints that carry such statistics."""

import torch
from torch import Tensor, nn

from .configuration_radio import RadioConfig


class RadioFeatureNormalizer(nn.Module):
    """Shifts and rotates final features, `(..., hidden)`, into a standardized space (some RADIOv2.5 checkpoints)."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("tx", torch.eye(config.hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.tx.T


class RadioIntermediateNormalizer(nn.Module):
    """Standardizes features of intermediate blocks: a mean and a scale for each block, one rotation for each or all."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        num_layers, size = config.num_intermediate_normalizers, config.hidden_size
        rotations = (num_layers, 1, 1) if config.intermediate_rotation_per_layer else (1, 1)
        self.register_buffer("alphas", torch.ones(num_layers))
        self.register_buffer("means", torch.zeros(num_layers, size))
        self.register_buffer("rotation", torch.eye(size).repeat(rotations))

    def forward(self, features: Tensor, blocks: list[int]) -> Tensor:
        """Standardize averaged outputs of `blocks`: mean and scale are averaged too, the rotation is the last one's."""
        rotation = self.rotation if self.rotation.ndim == 2 else self.rotation[blocks[-1]]
        alpha, mean = self.alphas[blocks].mean(), self.means[blocks].mean(dim=0)
        return alpha * (features - mean) @ rotation.T
