"""How much features tell of where a patch lies."""

import torch
from torch import Tensor
from torch.nn import functional as F


RIDGE = 1e-3
"""Our choice of a penalty on unit features, so that the fit is stable where channels depend on each other."""


def position_r2(train: Tensor, test: Tensor) -> float:
    """Return the share of the variance of positions that a linear map of unit features explains, at most 1.

    High values mean that a patch tells where it is rather than what it shows. 0 for answers that do not, below 0 for
    answers that are worse than the mean.

    Args:
        train: Maps that the map is fit to, `(num_images, dim, rows, cols)`.
        test: Maps that it is measured on, of other images, the same shape but for their number.

    References:
        After the position predictor among NVIDIA's examples, as described; least squares is our choice.
        https://github.com/NVlabs/RADIO
    """
    inputs, targets = _tokens(train), _positions(train)
    gram = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, inputs.T @ targets / len(inputs))
    truth = _positions(test)
    error = (_tokens(test) @ weights - truth).square().sum()
    return (1 - error / (truth - truth.mean(0)).square().sum()).item()


def _tokens(maps: Tensor) -> Tensor:
    """Return unit features with a constant, `(num_tokens, dim + 1)`."""
    tokens = F.normalize(maps.double(), dim=1).movedim(1, -1).flatten(0, -2)
    return F.pad(tokens, (0, 1), value=1.0)


def _positions(maps: Tensor) -> Tensor:
    """Return row and column of each token in [-1, 1], `(num_tokens, 2)`."""
    axes = [torch.linspace(-1, 1, length, dtype=torch.float64) for length in maps.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return grid.repeat(len(maps), 1)
