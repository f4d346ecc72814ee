"""Ridge regression between two spaces, and how much of a penalty pairs that were left out ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.seeds import make_generator


NUM_FOLDS = 5
"""Our choice: the usual number; each part of 1,000 classes is then 200, enough to be confused with each other."""


class Regression:
    """Affine maps that minimize the mean squared error plus a penalty times the squared weights.

    Args:
        source_dim: Width of the points that are mapped.
        target_dim: Width of what they are mapped to.
    """

    def __init__(self, source_dim: int, target_dim: int) -> None:
        self.count = 0
        self.sum = torch.zeros(source_dim, dtype=torch.float64)
        self.target_sum = torch.zeros(target_dim, dtype=torch.float64)
        self.products = torch.zeros(source_dim, source_dim, dtype=torch.float64)
        self.mixed_products = torch.zeros(source_dim, target_dim, dtype=torch.float64)

    def add(self, sources: Tensor, targets: Tensor) -> Regression:
        """Learn from pairs, `(num_pairs, source_dim)` and `(num_pairs, target_dim)`."""
        sources, targets = sources.double(), targets.double()
        self.count += len(sources)
        self.sum += sources.sum(dim=0)
        self.target_sum += targets.sum(dim=0)
        self.products += sources.T @ sources
        self.mixed_products += sources.T @ targets
        return self

    def fit(self, penalties: Sequence[float]) -> list[nn.Linear]:
        """Return the map for each penalty, above 0, in units of the sources' variance."""
        mean, target_mean = self.sum / self.count, self.target_sum / self.count
        variances, axes = torch.linalg.eigh(self.products / self.count - torch.outer(mean, mean))
        correlation = axes.T @ (self.mixed_products / self.count - torch.outer(mean, target_mean))
        weights = [axes @ (correlation / (variances + penalty)[:, None]) for penalty in penalties]
        return [as_layer(weight, target_mean - mean @ weight) for weight in weights]

    @property
    def variance(self) -> float:
        """Mean variance of the sources' numbers."""
        mean = self.sum / self.count
        return (self.products.diagonal() / self.count - mean.square()).mean().item()


@dataclass(frozen=True)
class Pairs:
    """Points of two spaces that belong together.

    Attributes:
        sources: Each point in several variants, `(num_pairs, num_variants, source_dim)`.
        targets: `(num_pairs, target_dim)`.
    """

    sources: Tensor
    targets: Tensor

    def of(self, chosen: Tensor) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.sources[chosen], self.targets[chosen])


def fit_maps(pairs: Pairs, penalties: Sequence[float]) -> list[nn.Linear]:
    """Return for each penalty the map that takes every variant of a source to what tells its target from the others.

    Args:
        pairs: What belongs together; the targets' mean is taken off.
        penalties: As of `Regression.fit`.
    """
    targets = pairs.targets - pairs.targets.mean(dim=0)
    regression = Regression(pairs.sources.shape[-1], targets.shape[-1])
    for variant in pairs.sources.unbind(dim=1):
        regression.add(variant, targets)
    return regression.fit(penalties)


@torch.no_grad()
def embed_variants(layer: nn.Linear, sources: Tensor) -> Tensor:
    """Return a unit vector for each source, the mean of those of its mapped variants, `(num_pairs, target_dim)`."""
    return F.normalize(F.normalize(layer(sources), dim=-1).mean(dim=1), dim=-1)


def without_direction(layer: nn.Linear, direction: Tensor) -> nn.Linear:
    """Return the map whose answers have nothing along a direction `(target_dim,)`."""
    unit = F.normalize(direction.double(), dim=0)
    columns = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1).double()
    columns -= torch.outer(unit, unit @ columns)
    return as_layer(columns[:, :-1].T, columns[:, -1])


def recognition(layer: nn.Linear, pairs: Pairs) -> float:
    """Return how well targets are recognized by their mapped sources, in [0, 1]: the mean reciprocal rank.

    A target asks for the source that it belongs to, among all of the pairs, by the cosine: as an image asks for the
    name of its class.
    """
    centered = pairs.targets - pairs.targets.mean(dim=0)
    cosines = F.normalize(centered, dim=-1) @ embed_variants(layer, pairs.sources).T
    ranks = (cosines >= cosines.diagonal()[:, None]).sum(dim=1)
    return (1 / ranks).mean().item()


def cross_validate(pairs: Pairs, penalties: Sequence[float], *, seed: int = 0) -> list[float]:
    """Return for each penalty how well targets are recognized that no part of the map was fitted to.

    Args:
        pairs: At least two for each of `NUM_FOLDS` parts.
        penalties: As of `fit_maps`.
        seed: Of the parts.

    Raises:
        ValueError: If there are too few pairs.
    """
    count = len(pairs.targets)
    if count < 2 * NUM_FOLDS:
        raise ValueError(f"`pairs` must be at least {2 * NUM_FOLDS} for cross-validation, got {count}.")
    part = torch.randperm(count, generator=make_generator(seed, "folds")) % NUM_FOLDS
    found = torch.zeros(len(penalties), dtype=torch.float64)
    for fold in range(NUM_FOLDS):
        maps = fit_maps(pairs.of(part != fold), penalties)
        left_out = pairs.of(part == fold)
        found += torch.tensor([recognition(layer, left_out) for layer in maps], dtype=torch.float64)
    return (found / NUM_FOLDS).tolist()


def as_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the linear layer of a weight `(source_dim, target_dim)`, float32."""
    layer = nn.Linear(weight.shape[0], weight.shape[1])
    layer.weight.data, layer.bias.data = weight.T.float().contiguous(), bias.float()
    return layer
