"""Balanced sampling: images of rare groups are shown more often, by a column, by clusters of features, or by weights.

A table repeats its images. A stream decides for each image and pass how often it comes, from a hash of its name.

SigLino (https://arxiv.org/abs/2512.20157) balances clusters of features, NVIDIA's TAO 7 samples by inverse frequency.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from modeling_radio.core.errors import first_few
from modeling_radio.core.files import cache_dir, write_file
from modeling_radio.core.ranks import on_first_rank
from modeling_radio.core.seeds import derive_seed
from modeling_radio.core.settings import hash_of
from modeling_radio.data.image_folder import files_fingerprint
from modeling_radio.data.image_table import EncodedRows, ImageTable, SelectedRows
from modeling_radio.data.sources import ImageColumn
from modeling_radio.training.recipes.sections import BalanceRecipe


logger = logging.getLogger(__name__)

MAX_PASSES = 16
"""Our choice: a table of numbers has at most so many passes; an image that is still rarer is in it by chance."""
FIT_ROWS = 100_000
"""Our choice of vectors that clusters are fitted on: some hundred for each of a thousand clusters."""
FIT_ROUNDS = 20
"""Our choice of rounds of k-means: more hardly move the centers."""
_CHUNK = 8192


def balanced_table(table: ImageTable, weights: np.ndarray, seed: int) -> ImageTable:
    """Return a table in which each image stands in proportion to its weight, in an order that the seed decides.

    Args:
        table: The images, or those that filters left of them.
        weights: Weight of each image before filters.
        seed: Decides which images stand once more than others of equal weight.

    Raises:
        ValueError: If no image has a weight above 0.
    """
    if isinstance(table.rows, SelectedRows):
        weights = weights[list(table.rows.numbers)]
    if not weights.any():
        raise ValueError("`data.balance.weights` must be above 0 for some image, got 0 for all that filters leave.")
    return table.repeated(draw(weights, derive_seed(seed, "balance")).tolist())


def table_weights(rows: EncodedRows, balance: BalanceRecipe, seed: int) -> np.ndarray:
    """Return how often each image is shown in a pass, `(num_images,)`, the same on all ranks.

    Args:
        rows: All images of a source.
        balance: The recipe's section.
        seed: Seed of the clusters.

    Raises:
        ValueError: If features or weights cannot be read, lack a column, or are not of these images.
    """
    if balance.weights is not None:
        texts = rows.weights()
        if texts is None:
            raise ValueError(
                f"`data.balance.weights` needs a table or .tar files, got a folder and {balance.weights!r}."
            )
        weights = np.array([_weight_of(text, f"row {row}", balance) for row, text in enumerate(texts)])
        return _limited(weights, np.ones(len(weights)), balance.max_repeats) if weights.any() else weights
    groups = _groups_of(rows, balance, seed)
    weights = group_weights(groups, balance.power, balance.max_repeats)
    before, after = np.bincount(groups).max(), np.bincount(groups, weights).max()
    shares = (after / len(groups), before / len(groups))
    logger.info("%d groups: the largest gets %.3f of the images, without balance %.3f", len(set(groups)), *shares)
    return weights


def _groups_of(rows: EncodedRows, balance: BalanceRecipe, seed: int) -> np.ndarray:
    """Return the number of the group of each image, which is kept in the cache folder."""
    features = ExtractedFeatures.open(balance)
    path = features.kept_at("rows", rows.fingerprint(), seed)

    def find() -> list[int]:
        try:
            groups = load_file(path)["groups"]
        except (OSError, KeyError, SafetensorError):
            groups = torch.from_numpy(_match(rows, features, seed))
            _keep({"groups": groups}, path)
        return groups.tolist()

    return np.array(on_first_rank(find))


def _keep(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda scratch: save_file(dict(tensors), scratch))


def _match(rows: EncodedRows, features: ExtractedFeatures, seed: int) -> np.ndarray:
    """Return the groups of the features in the order of the images."""
    found, names = features.groups(seed), rows.names()
    if names is None and len(rows) == len(found):  # tables are extracted in their order
        return found
    group_of = dict(zip(itertools.chain.from_iterable(features.texts("id")), found.tolist(), strict=True))
    missing = [name for name in names or () if name not in group_of]
    if names is None or missing:
        what = f"{len(found)} rows" if names is None else f"none of {first_few(missing, 2)}"
        raise ValueError(
            f"`data.balance.features` must be of the same {len(rows)} images, got {str(features.folder)!r} with "
            f"{what}. Extract again."
        )
    return np.array([group_of[name] for name in names])


class RowWeights(Protocol):
    """The weights of streamed images."""

    def of(self, key: str, row: Mapping[str, Any]) -> float | None:
        """Return how often an image is shown in a pass on average; None for one that has no features.

        Args:
            key: Its name.
            row: Its row.

        Raises:
            ValueError: If its own weight is no number of at least 0.
        """
        ...


def stream_weights(column: ImageColumn, balance: BalanceRecipe, seed: int) -> RowWeights:
    """Return the weights of streamed images, which are read with the images, or found by their names.

    Names and groups of features are kept in the cache folder: 12 bytes an image in a file that all processes of a
    machine share in memory, 1.2 GB for a hundred million.

    Args:
        column: The images.
        balance: The recipe's section.
        seed: Seed of the clusters.

    Raises:
        ValueError: If features cannot be read, or lack a column.
    """
    if balance.weights is not None:
        return _OwnWeights(column, balance)
    features = ExtractedFeatures.open(balance)
    path = features.kept_at("names", "", seed)
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        hashes = np.concatenate([np.array([*map(_hash, names)], np.int64) for names in features.texts("id")])
        order = hashes.argsort(kind="stable")
        groups = features.groups(seed)[order].astype(np.int32)
        kept = {"names": torch.from_numpy(hashes[order]), "groups": torch.from_numpy(groups)}
        _keep(kept, path)
    names, groups = kept["names"].numpy(), kept["groups"].numpy()
    sizes = np.bincount(groups)
    weights = weights_of_sizes(sizes, balance.power, balance.max_repeats)
    extremes = (weights[sizes > 0].min(), weights.max())
    logger.info("%d images in %d groups are shown %.3g to %.3g times a pass", len(names), len(sizes), *extremes)
    return _WeightsByName(names, groups, weights)


class _OwnWeights:
    """Weights that come with the images."""

    def __init__(self, column: ImageColumn, balance: BalanceRecipe) -> None:
        self.column, self.balance = column, balance

    def of(self, key: str, row: Mapping[str, Any]) -> float:
        return min(_weight_of(self.column.weight(row), key, self.balance), self.balance.max_repeats)


class _WeightsByName(NamedTuple):
    """Weights of named images.

    Attributes:
        names: Hashes of the names, in ascending order.
        groups: The group of each.
        weights: The weight of each group.
    """

    names: np.ndarray
    groups: np.ndarray
    weights: np.ndarray

    def of(self, key: str, row: Mapping[str, Any]) -> float | None:
        name = _hash(key)
        place = int(self.names.searchsorted(name))
        if place == len(self.names) or self.names[place] != name:
            return None
        return float(self.weights[self.groups[place]])


def _weight_of(text: Any, name: str, balance: BalanceRecipe) -> float:
    try:
        weight = float(text)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"`data.balance.weights` must hold numbers of at least 0, got {balance.weights!r} with {text!r:.50} for "
            f"{name}."
        )
    return weight


def _hash(name: str) -> int:
    """Return 64 bits of a name as a signed integer: of a hundred million two are equal with a chance of 1 in 4,000."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


def num_copies(weight: float, number_of_pass: int, seed: int, key: str) -> int:
    """Return how often an image is shown in a pass, its weight up to one; all passes together differ by no more.

    Args:
        weight: Its frequency: it is shown as often in a pass on average.
        number_of_pass: Number of the pass, from 0.
        seed: Decides with the key in which passes it is shown once more.
        key: Its name.
    """
    start = derive_seed(seed, "copies", key) / 2**63
    return math.floor(weight * (number_of_pass + 1) + start) - math.floor(weight * number_of_pass + start)


def group_weights(groups: np.ndarray, power: float, max_repeats: float) -> np.ndarray:
    """Return how often each image is shown in a pass, on average 1, `(num_images,)`.

    Args:
        groups: Number of the group of each image.
        power: An image's weight is the inverse of the size of its group to this power: 1 shows all groups equally
            often, 0 all images.
        max_repeats: Largest weight; what is cut off goes to the others.
    """
    return weights_of_sizes(np.bincount(groups), power, max_repeats)[groups]


def weights_of_sizes(sizes: np.ndarray, power: float, max_repeats: float) -> np.ndarray:
    """Return how often the images of each group are shown in a pass, `(num_groups,)`.

    Args:
        sizes: Number of images of each group; 0 gets a weight of 0.
        power: As in `group_weights`.
        max_repeats: As in `group_weights`.
    """
    return _limited(np.where(sizes > 0, np.maximum(sizes, 1) ** -float(power), 0.0), sizes, max_repeats)


def _limited(free: np.ndarray, sizes: np.ndarray, max_repeats: float) -> np.ndarray:
    """Return weights in proportion to others, but at most `max_repeats`, and on average 1 where the limit allows it.

    Args:
        free: Weight of each image of a group, above 0 for one at least.
        sizes: Number of images of each group.
        max_repeats: Largest weight; what is cut off goes to the others.
    """
    total = sizes.sum()
    weights = free * (total / (sizes * free).sum())
    for _ in range(len(sizes)):  # cutting raises the others, which may then be too large
        is_cut = weights >= max_repeats
        rest, of_others = total - max_repeats * sizes[is_cut].sum(), (sizes * free)[~is_cut].sum()
        if rest <= 0 or not of_others or weights.max() <= max_repeats:
            break
        weights = np.where(is_cut, max_repeats, free * (rest / of_others))
    return np.minimum(weights, max_repeats)


def draw(weights: np.ndarray, seed: int) -> np.ndarray:
    """Return numbers of images, each as often as its weight says, up to one, by systematic sampling.

    There are as many passes as the rarest image needs to stand in one of them, at most `MAX_PASSES`.
    """
    num_passes = int(np.clip(np.ceil(1 / weights[weights > 0].min()), 1, MAX_PASSES))
    random = np.random.default_rng(seed)
    order = random.permutation(len(weights))  # neighbors in the data are often alike
    ends = np.cumsum(weights[order]) * (num_passes * len(weights) / weights.sum())
    counts = np.diff(np.floor(ends + random.random()).astype(np.int64), prepend=0)
    return np.repeat(order, counts)[random.permutation(counts.sum())]


class ExtractedFeatures(NamedTuple):
    """A data set that `radio extract` wrote; it is read file by file, so that it may be larger than the memory.

    Attributes:
        folder: Its folder.
        files: Its files, those for training first.
        column: Column of the groups or the vectors.
        num_clusters: Number of clusters of the vectors; None for the values of the column.
    """

    folder: Path
    files: Sequence[Path]
    column: str
    num_clusters: int | None

    @classmethod
    def open(cls, balance: BalanceRecipe) -> ExtractedFeatures:
        """Find the files.

        Raises:
            ValueError: If there are none.
        """
        assert balance.features is not None  # the recipe's rule: features, or weights
        files = sorted(
            (balance.features / "data").glob("*.parquet"),
            key=lambda path: (not path.name.startswith("train-"), path.name),
        )
        if not files:
            raise ValueError(
                f"`data.balance.features` must be a folder that `radio extract` wrote, got {str(balance.features)!r}. "
                "Extract first."
            )
        return cls(balance.features, files, balance.column or "summary", balance.clusters)

    def kept_at(self, kind: str, images: str, seed: int) -> Path:
        """Return the file in the cache folder for groups of these features.

        Args:
            kind: The content of the file.
            images: Fingerprint of the images that they are matched with.
            seed: Seed of the clusters.
        """
        facts = {"features": files_fingerprint({path.name: path for path in self.files}), "rows": images, "kind": kind}
        facts |= {"column": self.column, "clusters": self.num_clusters}
        return cache_dir() / "image_groups" / f"{hash_of(facts | {'seed': seed})[:16]}.safetensors"

    def groups(self, seed: int) -> np.ndarray:
        """Return the number of the group of each row, `(num_rows,)`."""
        if self.num_clusters is None:
            numbers: dict[str, int] = {}
            values = itertools.chain.from_iterable(self.texts(self.column))
            return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64)
        generator = torch.Generator().manual_seed(derive_seed(seed, "clusters"))
        centers = fit_clusters(self._fitted(generator), self.num_clusters, generator)
        return torch.cat([nearest(vectors, centers) for vectors in self._vectors()]).numpy()

    def texts(self, name: str) -> Iterator[list[str]]:
        """Yield the values of a column as texts, file by file."""
        for path in self.files:
            yield [str(value) for value in _read(path, name).to_pylist()]

    def _fitted(self, generator: torch.Generator) -> Tensor:
        """Return the vectors that clusters are fitted on."""
        from pyarrow.parquet import read_metadata

        num_rows = sum(read_metadata(path).num_rows for path in self.files)
        numbers = torch.randperm(num_rows, generator=generator)[:FIT_ROWS].sort().values
        parts, start = [], 0
        for vectors in self._vectors():
            is_here = (numbers >= start) & (numbers < start + len(vectors))
            parts.append(vectors[numbers[is_here] - start])
            start += len(vectors)
        return torch.cat(parts)

    def _vectors(self) -> Iterator[Tensor]:
        """Yield vectors file by file, `(num_rows, dim)`; the scales of int8 would not change their directions."""
        for path in self.files:
            lists = _read(path, self.column).combine_chunks()
            if not hasattr(lists, "flatten") or len(lists.flatten()) % len(lists):
                raise ValueError(f"`data.balance.column` must hold one vector for each image, got {self.column!r}.")
            vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
            yield torch.from_numpy(vectors.astype(np.float32))


def fit_clusters(vectors: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return the centers of clusters by k-means of unit vectors, `(num_clusters, dim)`.

    Args:
        vectors: `(num_vectors, dim)`.
        num_clusters: Number of clusters.
        generator: Decides the first centers.

    References:
        I. S. Dhillon, D. S. Modha, "Concept Decompositions for Large Sparse Text Data using Clustering", 2001.
    """
    fitted = normalize(vectors.float(), dim=1)
    centers = fitted[torch.randperm(len(fitted), generator=generator)[:num_clusters]]
    for _ in range(FIT_ROUNDS):
        own = nearest(fitted, centers)
        sums = torch.zeros_like(centers).index_add_(0, own, fitted)
        is_empty = torch.bincount(own, minlength=len(centers)) == 0
        centers = torch.where(is_empty[:, None], centers, normalize(sums, dim=1))
    return centers


def nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """Return the number of the center with the smallest angle to each vector, `(num_vectors,)`."""
    return torch.cat([(part.float() @ centers.T).argmax(1) for part in vectors.split(_CHUNK)])


def _read(path: Path, name: str) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return read_table(path, columns=[name]).column(name)
    except (ArrowException, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`data.balance.column` must be in {str(path)!r}, got {name!r}: {reason}.") from error
