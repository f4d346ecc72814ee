"""Fewer numbers for each image: means of neighboring patches, and principal components of what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from foundation.checked_tensors import CheckedTensors, save_tensors
from foundation.files import write_file


PCA_FILE = "pca.safetensors"
"""In the data set's folder: mean, components and variances of each dense column."""
MEAN, COMPONENTS, VARIANCES = "mean", "components", "explained_variance"


@dataclass(frozen=True)
class Basis:
    """Principal components of one kind of dense features; `tokens @ components.T + mean` comes back from them.

    Attributes:
        mean: `(dim,)`.
        components: Orthonormal rows, those with the largest variance first, `(num_components, dim)`.
        explained_variance: Along each component, `(num_components,)`.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor

    def project(self, tokens: Tensor) -> Tensor:
        """Return the components of tokens `(num_tokens, dim)`, `(num_tokens, num_components)`."""
        return (tokens - self.mean) @ self.components.T


class Moments:
    """Number, sum and products of tokens that are seen one image after the other: what a basis is made of."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, tokens: Tensor) -> None:
        """Count tokens `(num_tokens, dim)`."""
        tokens = tokens.double()
        self.count += len(tokens)
        self.total = self.total + tokens.sum(0)
        self.products = self.products + tokens.T @ tokens

    def basis(self, num_components: int) -> Basis:
        """Return the basis; the sign of a component is chosen so that its largest entry is positive.

        Raises:
            ValueError: If there are not so many.
        """
        dim = len(self.total)
        if num_components > dim:
            raise ValueError(f"`pca` must be at most the features' {dim} dimensions, got {num_components}.")
        if num_components >= self.count:  # directions beyond are arbitrary
            raise ValueError(f"`pca` must be less than the {self.count} patches of the images, got {num_components}.")
        mean = self.total / self.count
        values, vectors = torch.linalg.eigh(self.products / self.count - torch.outer(mean, mean))  # ascending
        components = vectors[:, -num_components:].flip(1).T
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * largest.sign()
        variances = values[-num_components:].flip(0).clamp(min=0)
        return Basis(mean.float(), components.float().contiguous(), variances.float())


@dataclass(frozen=True)
class Reduction:
    """What is done to dense features before they are stored.

    Attributes:
        pool: Side of the square of patches whose mean is taken; at the right and lower edge of what is left of it.
        bases: Of each dense column by its name; none where all dimensions are stored.
    """

    pool: int = 1
    bases: Mapping[str, Basis] = field(default_factory=dict)

    def pooled(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Return means of tokens `(rows * cols, dim)`, in the same layout, and their grid."""
        tokens = tokens.float()
        if self.pool == 1:
            return tokens, grid
        image = tokens.T.unflatten(1, grid)[None]  # (rows * cols, dim) -> (1, dim, rows, cols)
        means = avg_pool2d(image, self.pool, ceil_mode=True, count_include_pad=False)[0]
        return means.flatten(1).T.contiguous(), (means.shape[1], means.shape[2])

    def apply(self, name: str, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Return what is stored of the dense features of one column, and its grid."""
        tokens, grid = self.pooled(tokens, grid)
        return (self.bases[name].project(tokens) if name in self.bases else tokens), grid


def fit_bases(
    rows: Iterable[Mapping[str, tuple[Tensor, tuple[int, int]]]], pool: int, num_components: int
) -> dict[str, Basis]:
    """Find the principal components of the pooled dense features of some images.

    Args:
        rows: Of each image the tokens and the grid of each dense column.
        pool: As of `Reduction`.
        num_components: For each column.
    """
    moments: dict[str, Moments] = {}
    for row in rows:
        for name, (tokens, grid) in row.items():
            moments.setdefault(name, Moments()).add(Reduction(pool).pooled(tokens, grid)[0])
    return {name: each.basis(num_components) for name, each in moments.items()}


def save_bases(path: Path, bases: Mapping[str, Basis]) -> None:
    """Write the bases as one safetensors file."""
    tensors = {f"{name}/{part}": getattr(basis, part) for name, basis in bases.items() for part in _PARTS}
    write_file(path, lambda place: save_tensors(tensors, place))


def load_bases(path: Path) -> dict[str, Basis]:
    """Return the bases that `save_bases` wrote.

    Raises:
        DamagedFileError: If the file holds something else.
    """
    tensors = CheckedTensors(path).read_all()
    names = [key.removesuffix(f"/{MEAN}") for key in tensors if key.endswith(f"/{MEAN}")]
    return {name: Basis(*(tensors[f"{name}/{part}"] for part in _PARTS)) for name in names}


_PARTS = (MEAN, COMPONENTS, VARIANCES)
