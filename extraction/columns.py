"""Columns of extracted features: pooled, projected on principal components, in half precision or 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from modeling_radio.core.checked_tensors import load_tensors, save_tensors
from modeling_radio.core.files import write_file


if TYPE_CHECKING:
    import pyarrow
    from datasets import Features


ID, GRID, FEATURES, SUMMARY, MEAN_FEATURES = "id", "grid", "features", "summary", "mean_features"
_VECTORS = (SUMMARY, MEAN_FEATURES, FEATURES)
SCALE = "_scale"
"""Suffix of the column with the scales of an int8 column."""
INT8_MAX = 127
MAX_NUMBERS = 2**31 - 1
"""Ends of lists are 32-bit in Arrow."""
PCA_FILE = "pca.safetensors"
"""File in the data set's folder with mean, components and variances of each dense column."""

ImageColumns = Mapping[str, Tensor]
"""Outputs of the model for an image by column, and in `grids` rows and columns of the patches of each dense one."""


class Basis(NamedTuple):
    """Principal components of one kind of dense features; `tokens @ components.T + mean` inverts the projection.

    Attributes:
        mean: `(dim,)`.
        components: Orthonormal rows, those with the largest variance first, `(num_components, dim)`.
        explained_variance: Along each component, `(num_components,)`.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor


class TokenMoments:
    """Running number, sum and products of tokens, from which a basis is computed."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, tokens: Tensor) -> None:
        """Add tokens `(num_tokens, dim)`."""
        tokens = tokens.double()
        self.count += len(tokens)
        self.total = self.total + tokens.sum(0)
        self.products = self.products + tokens.T @ tokens

    def basis(self, num_components: int) -> Basis:
        """Return the basis; the sign of a component is chosen so that its largest entry is positive.

        Raises:
            ValueError: If there are fewer components.
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


def fit_bases(rows: Iterable[ImageColumns], pool: int, num_components: int) -> dict[str, Basis]:
    """Return the principal components of each dense column of some images.

    Args:
        rows: Outputs for each image.
        pool: Patches along the side of a square that is averaged before.
        num_components: Number of components of each column.
    """
    moments: dict[str, TokenMoments] = {}
    for row in rows:
        for name in (name for name in row if _kind(name) == FEATURES):
            moments.setdefault(name, TokenMoments()).add(pooled(row[name], _grid(row, name), pool)[0])
    return {name: each.basis(num_components) for name, each in moments.items()}


def save_bases(path: Path, bases: Mapping[str, Basis]) -> None:
    """Write the bases of all columns as one safetensors file."""
    tensors = {f"{name}/{part}": tensor for name, basis in bases.items() for part, tensor in basis._asdict().items()}
    write_file(path, lambda temporary: save_tensors(tensors, temporary))


def load_bases(path: Path) -> dict[str, Basis]:
    """Return the bases that `save_bases` wrote.

    Raises:
        DamagedFileError: If the file holds something else.
    """
    tensors, _ = load_tensors(path)
    names = [key.removesuffix("/mean") for key in tensors if key.endswith("/mean")]
    return {name: Basis(*(tensors[f"{name}/{part}"] for part in Basis._fields)) for name in names}


def pooled(tokens: Tensor, grid: tuple[int, int], pool: int) -> tuple[Tensor, tuple[int, int]]:
    """Return float32 means of squares of tokens `(rows * cols, dim)`, in the same layout, and their grid.

    At the right and lower edge the squares are cut off.
    """
    tokens = tokens.float()
    if pool == 1:
        return tokens, grid
    image = tokens.T.unflatten(1, grid)[None]  # (rows * cols, dim) -> (1, dim, rows, cols)
    means = avg_pool2d(image, pool, ceil_mode=True, count_include_pad=False)[0]
    return means.flatten(1).T.contiguous(), (means.shape[1], means.shape[2])


@dataclass(frozen=True)
class Storage:
    """Format of stored vectors.

    Attributes:
        dtype: "float32", "float16" or "int8".
        pool: Patches along the side of a square of dense features that is averaged.
        bases: Principal components of each dense column by its name; empty to store all dimensions.
    """

    dtype: str = "float32"
    pool: int = 1
    bases: Mapping[str, Basis] = field(default_factory=dict)

    def reduce(self, row: ImageColumns) -> dict[str, Tensor]:
        """Return the outputs for an image, pooled and projected, in float32, with a `grid` of each dense column."""
        kept = {name: tensor.float() for name, tensor in row.items() if _kind(name) in (SUMMARY, MEAN_FEATURES)}
        for name in (name for name in row if _kind(name) == FEATURES):
            tokens, grid = pooled(row[name], _grid(row, name), self.pool)
            if name in self.bases:
                tokens = (tokens - self.bases[name].mean) @ self.bases[name].components.T
            kept |= {name: tokens, _beside(name, GRID): torch.tensor(grid)}
        return kept


def quantized(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors `(..., dim)` as int8, and the scale of each, `(...)`, whose product approximates the vector.

    The largest entry of a vector becomes 127: our choice, which limits errors to 0.4 % of that entry.
    """
    scales = vectors.abs().amax(-1) / INT8_MAX
    steps = torch.where(scales > 0, scales, 1.0)
    return (vectors / steps[..., None]).round().to(torch.int8), scales


def restored(vectors: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """Return stored vectors `(..., dim)` as float32.

    Args:
        vectors: Numbers as stored.
        scales: Scales of int8 vectors, `(...)`.
    """
    vectors = vectors.astype(np.float32)
    return vectors if scales is None else vectors * scales.astype(np.float32)[..., None]


def column_names(row: ImageColumns) -> list[str]:
    """Return the columns of vectors of a row, the model's first, without grids and scales."""
    names = [name for name in row if _kind(name) in _VECTORS]
    return sorted(names, key=lambda name: ("/" in name, name.rpartition("/")[0], _VECTORS.index(_kind(name))))


def features_of(row: ImageColumns, storage: Storage, kept: Mapping[str, Any]) -> Features:
    """Return the types of all columns for `datasets`.

    Args:
        row: Reduced outputs for an image.
        storage: Format of the vectors.
        kept: Types of the columns that are copied from the source.

    Raises:
        ValueError: If a copied column has the name of one of features.
    """
    from datasets import Features, List, Value

    taken = [name for name in kept if name == ID or _kind(name).removesuffix(SCALE) in (*_VECTORS, GRID)]
    if taken:
        raise ValueError(f"`keep` must not name a column of features, got {taken[0]!r}. Rename it in the source.")
    types: dict[str, Any] = {ID: Value("string"), **kept}
    number, scale = Value(storage.dtype), Value("float32")
    for name in column_names(row):
        is_dense = _kind(name) == FEATURES
        if is_dense:
            types[_beside(name, GRID)] = List(Value("int32"), length=2)
            types[name] = List(number)
        else:
            types[name] = List(number, length=row[name].shape[-1])
        if storage.dtype == "int8":
            types[name + SCALE] = List(scale) if is_dense else scale
    return Features(types)


def table_of(
    ids: Sequence[str], kept: pyarrow.Table, rows: Sequence[ImageColumns], storage: Storage, features: Features
) -> pyarrow.Table:
    """Return some rows of the data set.

    Args:
        ids: Names of the images.
        kept: Columns that are copied from the source.
        rows: Reduced outputs for each image.
        storage: Format of the vectors.
        features: Types of all columns.

    Raises:
        ValueError: If a number is not finite or too large for the type.
    """
    import pyarrow

    schema = features.arrow_schema
    arrays: dict[str, Any] = {ID: pyarrow.array(ids, pyarrow.string())}
    arrays |= {name: kept.column(name) for name in kept.column_names}
    for name in column_names(rows[0]):
        parts = [stored(name, row[name], storage.dtype) for row in rows]
        vectors = [part[0].numpy() for part in parts]
        if _kind(name) != FEATURES:
            arrays[name] = _fixed(vectors)
            scales: Any = pyarrow.array(np.array([part[1] for part in parts], np.float32))
        else:
            grids = [row[_beside(name, GRID)].numpy() for row in rows]
            arrays[_beside(name, GRID)] = _fixed([grid.astype(np.int32) for grid in grids])
            arrays[name] = _lists([each.ravel() for each in vectors])
            scales = _lists([part[1].numpy() for part in parts])
        if storage.dtype == "int8":
            arrays[name + SCALE] = scales
    return pyarrow.Table.from_arrays([arrays[name] for name in schema.names], names=schema.names).cast(schema)


def stored(name: str, vectors: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Return vectors in their type, and the scales of int8; of other types zeros, which are not stored.

    Args:
        name: Their column, for messages.
        vectors: `(..., dim)`.
        dtype: "float32", "float16" or "int8".

    Raises:
        ValueError: If a number is not finite or too large for the type.
    """
    if not vectors.isfinite().all():
        raise ValueError(f"`checkpoint` must return finite numbers, got others in {name}. Try float32 precision.")
    if dtype == "int8":
        return quantized(vectors)
    stored = vectors.to(getattr(torch, dtype))
    if not stored.isfinite().all():
        raise ValueError(
            f"`vector_dtype` must hold numbers as large as those of {name}, got {dtype!r}. Take float32 or int8."
        )
    return stored, torch.zeros(vectors.shape[:-1])


def _fixed(vectors: Sequence[np.ndarray]) -> Any:
    """Return vectors of one length as an array of Arrow."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.concatenate(vectors)), len(vectors[0]))


def _lists(values: Sequence[np.ndarray]) -> Any:
    """Return flat arrays of any lengths as an array of Arrow."""
    import pyarrow

    ends = _ends([len(each) for each in values])
    return pyarrow.ListArray.from_arrays(ends, pyarrow.array(np.concatenate(values)))


def _ends(lengths: Sequence[int]) -> np.ndarray:
    """Return the ends of several lists, with 0 in front, in Arrow's type.

    Raises:
        ValueError: If the lists are too long for it.
    """
    ends = np.cumsum([0, *lengths])
    if ends[-1] > MAX_NUMBERS:
        raise ValueError(
            f"`batch_size` must leave at most {MAX_NUMBERS:,} numbers in a column, got {ends[-1]:,}. Halve it."
        )
    return ends.astype(np.int32)


def _grid(row: ImageColumns, name: str) -> tuple[int, int]:
    rows, cols = row[_beside(name, "grids")].tolist()
    return rows, cols


def _kind(name: str) -> str:
    return name.rpartition("/")[2]


def _beside(name: str, kind: str) -> str:
    """Return the name of another column of the same model or adaptor."""
    return f"{name.removesuffix(_kind(name))}{kind}"
