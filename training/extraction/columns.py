"""Columns of extracted features, with fewer numbers where asked: principal components, half precision, 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from core.checked_tensors import CheckedTensors, save_tensors
from core.files import write_file


if TYPE_CHECKING:
    import pyarrow
    from datasets import Features


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


ID, GRID, FEATURES, SUMMARY, MEAN_FEATURES = "id", "grid", "features", "summary", "mean_features"
SCALE = "_scale"
"""Ends the name of the column with the scales of one of int8."""
INT8_MAX = 127
MAX_NUMBERS = 2**31 - 1
"""Ends of lists are 32-bit in Arrow."""
Row = Mapping[str, Tensor]


@dataclass(frozen=True)
class Storage:
    """How vectors are stored.

    Attributes:
        dtype: "float32", "float16" or "int8".
        is_nested: Whether dense features are lists of rows of patches, not flat.
        reduction: What is done to dense features before.
    """

    dtype: str = "float32"
    is_nested: bool = False
    reduction: Reduction = field(default_factory=Reduction)


def quantized(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors `(..., dim)` as int8, and the scale of each, `(...)`, by which they are multiplied to come back.

    The largest entry of a vector becomes 127: our choice, after which errors are at most 0.4 % of that entry.
    """
    scales = vectors.abs().amax(-1) / INT8_MAX
    steps = torch.where(scales > 0, scales, 1.0)
    return (vectors / steps[..., None]).round().to(torch.int8), scales


def restored(vectors: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """Return stored vectors `(..., dim)` as float32.

    Args:
        vectors: As stored.
        scales: Of int8, `(...)`.
    """
    vectors = vectors.astype(np.float32)
    return vectors if scales is None else vectors * scales.astype(np.float32)[..., None]


def column_names(row: Row) -> list[str]:
    """Return the columns of vectors that a row of answers becomes, the model's first, without grids and scales."""
    names = [name for name in row if _kind(name) in _ORDER]
    return sorted(names, key=lambda name: ("/" in name, name.rpartition("/")[0], _ORDER.index(_kind(name))))


def reduced(row: Row, reduction: Reduction) -> dict[str, Tensor]:
    """Return a row of answers with what is left of its dense features, float32, and with their grids."""
    kept = {name: tensor.float() for name, tensor in row.items() if _kind(name) in (SUMMARY, MEAN_FEATURES)}
    for name in (name for name in row if _kind(name) == FEATURES):
        tokens, grid = reduction.apply(name, row[name], _grid(row, name))
        kept |= {name: tokens, _beside(name, GRID): torch.tensor(grid)}
    return kept


def dense_parts(row: Row) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Return the tokens and the grid of each dense column of a row of answers."""
    return {name: (row[name], _grid(row, name)) for name in row if _kind(name) == FEATURES}


def features_of(row: Row, storage: Storage, kept: Mapping[str, Any]) -> Features:
    """Return the types of all columns, in the words of `datasets`.

    Args:
        row: Of answers, reduced.
        storage: How vectors are stored.
        kept: Types of the columns that are copied from the source.

    Raises:
        ValueError: If one of these has a name of ours.
    """
    from datasets import Features, List, Value

    types: dict[str, Any] = {}
    number, scale = Value(storage.dtype), Value("float32")
    for name in column_names(row):
        vector = List(number, length=row[name].shape[-1])
        if _kind(name) != FEATURES:
            types[name] = vector
        else:
            types |= {_beside(name, GRID): List(Value("int32"), length=2)}
            types[name] = List(List(List(number))) if storage.is_nested else List(number)
        if storage.dtype == "int8":
            types[name + SCALE] = List(scale) if _kind(name) == FEATURES else scale
    types = {name: types[name] for name in types if name != ID}
    taken = [name for name in kept if name == ID or _kind(name).removesuffix(SCALE) in (*_ORDER, GRID)]
    if taken:
        raise ValueError(f"`keep` must name columns without a name of ours, got {taken[0]!r}. Rename it in the source.")
    return Features({ID: Value("string"), **kept, **types})


def table_of(
    ids: Sequence[str], kept: pyarrow.Table, rows: Sequence[Row], storage: Storage, features: Features
) -> pyarrow.Table:
    """Return some rows of the data set.

    Args:
        ids: Names of the images.
        kept: Columns that are copied from the source.
        rows: Answers, reduced.
        storage: How vectors are stored.
        features: Types of all columns.

    Raises:
        ValueError: If a number is too large for the type.
    """
    import pyarrow

    schema = features.arrow_schema
    arrays: dict[str, Any] = {ID: pyarrow.array(ids, pyarrow.string())}
    arrays |= {name: kept.column(name) for name in kept.column_names}
    for name in column_names(rows[0]):
        parts = [_stored(name, row[name], storage.dtype) for row in rows]
        vectors = [part[0].numpy() for part in parts]
        if _kind(name) != FEATURES:
            arrays[name] = _fixed(vectors)
            scales: Any = pyarrow.array(np.array([part[1] for part in parts], np.float32))
        else:
            grids = [row[_beside(name, GRID)].numpy() for row in rows]
            arrays[_beside(name, GRID)] = _fixed([grid.astype(np.int32) for grid in grids])
            arrays[name] = _nested(vectors, grids) if storage.is_nested else _lists([each.ravel() for each in vectors])
            scales = _lists([part[1].numpy() for part in parts])
        if storage.dtype == "int8":
            arrays[name + SCALE] = scales
    return pyarrow.Table.from_arrays([arrays[name] for name in schema.names], names=schema.names).cast(schema)


def _stored(name: str, vectors: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Return vectors in their type, and the scales of int8; of others zeros, which are not stored."""
    if not vectors.isfinite().all():
        raise ValueError(f"`checkpoint` must answer with finite numbers, got others in {name}. Try float32 precision.")
    if dtype == "int8":
        return quantized(vectors)
    stored = vectors.to(getattr(torch, dtype))
    if not stored.isfinite().all():
        raise ValueError(f"`dtype` must hold numbers as large as those of {name}, got {dtype!r}. Take float32 or int8.")
    return stored, torch.zeros(vectors.shape[:-1])


def _fixed(vectors: Sequence[np.ndarray]) -> Any:
    """Return vectors of one length as an array of Arrow."""
    import pyarrow

    values = pyarrow.array(np.concatenate(vectors))
    return pyarrow.FixedSizeListArray.from_arrays(values, len(vectors[0]))


def _lists(values: Sequence[np.ndarray]) -> Any:
    """Return flat arrays of any lengths as an array of Arrow."""
    import pyarrow

    ends = _ends([len(each) for each in values])
    return pyarrow.ListArray.from_arrays(ends, pyarrow.array(np.concatenate(values)))


def _ends(lengths: Sequence[int]) -> np.ndarray:
    """Return where each of several lists ends, with 0 in front, as Arrow counts.

    Raises:
        ValueError: If they are too long for that.
    """
    ends = np.cumsum([0, *lengths])
    if ends[-1] > MAX_NUMBERS:
        raise ValueError(
            f"`batch_size` must leave at most {MAX_NUMBERS:,} numbers in a column, got {ends[-1]:,}. Halve it."
        )
    return ends.astype(np.int32)


def _nested(vectors: Sequence[np.ndarray], grids: Sequence[np.ndarray]) -> Any:
    """Return maps `(rows * cols, dim)` as lists of lists of vectors."""
    import pyarrow

    lists = pyarrow.array(np.concatenate([each.ravel() for each in vectors]))
    dim = vectors[0].shape[-1]
    cols = np.concatenate([np.full(rows, cols) for rows, cols in grids])
    for lengths in (np.full(cols.sum(), dim), cols, np.array([rows for rows, _ in grids])):
        lists = pyarrow.ListArray.from_arrays(_ends(lengths.tolist()), lists)
    return lists


def _grid(row: Row, name: str) -> tuple[int, int]:
    rows, cols = row[_beside(name, "grids")].tolist()
    return rows, cols


def _kind(name: str) -> str:
    return name.rpartition("/")[2]


def _beside(name: str, kind: str) -> str:
    """Return the name of another column of the same model or adaptor."""
    return f"{name.removesuffix(_kind(name))}{kind}"


_ORDER = (SUMMARY, MEAN_FEATURES, FEATURES)
