"""Balanced sampling: images of rare groups are shown more often, by a column or by clusters of features.

SigLino (https://arxiv.org/abs/2512.20157) balances clusters of features, NVIDIA's TAO 7 samples by inverse frequency.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from modeling_radio.training.data.image_folder import files_fingerprint
from modeling_radio.training.data.image_table import EncodedRows, ImageTable, SelectedRows
from modeling_radio.training.recipes.sections import BalanceRecipe


logger = logging.getLogger(__name__)

MAX_PASSES = 16
"""Our choice: a table of numbers has at most so many passes; an image that is still rarer is in it by chance."""
FIT_ROWS = 100_000
"""Our choice of vectors that clusters are fitted on: some hundred for each of a thousand clusters."""
FIT_ROUNDS = 20
"""Our choice of rounds of k-means: more hardly move the centers."""
_CHUNK = 8192


def balanced_table(table: ImageTable, groups: np.ndarray, balance: BalanceRecipe, seed: int) -> ImageTable:
    """Return a table in which each image stands in proportion to its weight, in an order that the seed decides.

    Args:
        table: The images, or those that filters left of them.
        groups: Number of the group of each image before filters.
        balance: The recipe's section.
        seed: Decides which images stand once more than others of equal weight.
    """
    if isinstance(table.rows, SelectedRows):
        groups = groups[list(table.rows.numbers)]
    numbers = draw(group_weights(groups, balance.power, balance.max_repeats), derive_seed(seed, "balance"))
    before, after = (np.bincount(each).max() / len(each) for each in (groups, groups[numbers]))
    logger.info("%d groups: the largest gets %.3f of the images, without balance %.3f", len(set(groups)), after, before)
    return table.repeated(numbers.tolist())


def groups_of(rows: EncodedRows, balance: BalanceRecipe, seed: int) -> np.ndarray:
    """Return the number of the group of each image, the same on all ranks; it is kept in the cache folder.

    Args:
        rows: All images of a source.
        balance: The recipe's section.
        seed: Seed of the clusters.

    Raises:
        ValueError: If the features cannot be read, lack a column, or are not of these images.
    """
    files = _files(balance.features)
    state = files_fingerprint({path.name: path for path in files})
    facts = {"features": state, "rows": rows.fingerprint(), "column": balance.column, "clusters": balance.clusters}
    path = cache_dir() / "image_groups" / f"{hash_of(facts | {'seed': seed})[:16]}.safetensors"

    def find() -> list[int]:
        try:
            groups = load_file(path)["groups"]
        except (OSError, KeyError, SafetensorError):
            groups = torch.from_numpy(_find_groups(rows, balance, files, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, lambda scratch: save_file({"groups": groups}, scratch))
        return groups.tolist()

    return np.array(on_first_rank(find))


def _find_groups(rows: EncodedRows, balance: BalanceRecipe, files: list[Path], seed: int) -> np.ndarray:
    if balance.clusters is not None:
        vectors = torch.cat([torch.from_numpy(part) for part in _vectors(files, balance.column or "summary")])
        found = clusters(vectors, balance.clusters, derive_seed(seed, "clusters")).numpy()
    else:
        found = np.unique(np.array(_texts(files, str(balance.column))), return_inverse=True)[1]
    names = rows.names()
    if names is None and len(rows) == len(found):  # tables are extracted in their order
        return found
    group_of = dict(zip(_texts(files, "id"), map(int, found), strict=True))
    missing = [name for name in names or () if name not in group_of]
    if names is None or missing:
        what = f"{len(found)} rows" if names is None else f"none of {first_few(missing, 2)}"
        raise ValueError(
            f"`data.balance.features` must be of the same {len(rows)} images, got {str(balance.features)!r} with "
            f"{what}. Extract again."
        )
    return np.array([group_of[name] for name in names])


def group_weights(groups: np.ndarray, power: float, max_repeats: float) -> np.ndarray:
    """Return how often each image is shown in a pass, on average 1, `(num_images,)`.

    Args:
        groups: Number of the group of each image.
        power: An image's weight is the inverse of the size of its group to this power: 1 shows all groups equally
            often, 0 all images.
        max_repeats: Largest weight; what is cut off goes to the others.
    """
    sizes = np.bincount(groups)
    free = sizes[groups] ** -float(power)
    weights = free / free.mean()
    for _ in range(len(sizes)):  # cutting raises the others, which may then be too large
        is_cut = weights >= max_repeats
        rest = len(weights) - max_repeats * is_cut.sum()
        if rest <= 0 or weights.max() <= max_repeats:
            break
        weights = np.where(is_cut, max_repeats, free * (rest / free[~is_cut].sum()))
    return np.minimum(weights, max_repeats)


def draw(weights: np.ndarray, seed: int) -> np.ndarray:
    """Return numbers of images, each as often as its weight says, up to one, by systematic sampling.

    There are as many passes as the rarest image needs to stand in one of them, at most `MAX_PASSES`.
    """
    num_passes = int(np.clip(np.ceil(1 / weights.min()), 1, MAX_PASSES))
    random = np.random.default_rng(seed)
    order = random.permutation(len(weights))  # neighbors in the data are often alike
    ends = np.cumsum(weights[order]) * (num_passes * len(weights) / weights.sum())
    counts = np.diff(np.floor(ends + random.random()).astype(np.int64), prepend=0)
    return np.repeat(order, counts)[random.permutation(counts.sum())]


def clusters(vectors: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Return the cluster of each vector by k-means of unit vectors, `(num_vectors,)`.

    Args:
        vectors: `(num_vectors, dim)`.
        num_clusters: Number of clusters.
        seed: Decides the vectors that are fitted, and the first centers.

    References:
        I. S. Dhillon, D. S. Modha, "Concept Decompositions for Large Sparse Text Data using Clustering", 2001.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(vectors), generator=generator)[:FIT_ROWS].sort().values
    fitted = normalize(vectors[chosen].float(), dim=1)
    centers = fitted[torch.randperm(len(fitted), generator=generator)[:num_clusters]]
    for _ in range(FIT_ROUNDS):
        nearest = _nearest(fitted, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, fitted)
        is_empty = torch.bincount(nearest, minlength=len(centers)) == 0
        centers = torch.where(is_empty[:, None], centers, normalize(sums, dim=1))
    return _nearest(vectors, centers)


def _nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    return torch.cat([(part.float() @ centers.T).argmax(1) for part in vectors.split(_CHUNK)])


def _files(folder: Path) -> list[Path]:
    """Return the files of a data set that `radio extract` wrote, those for training first."""
    files = sorted(
        (folder / "data").glob("*.parquet"), key=lambda path: (not path.name.startswith("train-"), path.name)
    )
    if not files:
        raise ValueError(
            f"`data.balance.features` must be a folder that `radio extract` wrote, got {str(folder)!r}. Extract first."
        )
    return files


def _texts(files: Sequence[Path], name: str) -> list[str]:
    return [str(value) for path in files for value in _read(path, name).to_pylist()]


def _vectors(files: Sequence[Path], name: str) -> Iterator[np.ndarray]:
    """Yield vectors, `(num_rows, dim)`; the scales of int8 would not change their directions."""
    for path in files:
        lists = _read(path, name).combine_chunks()
        if not hasattr(lists, "flatten") or len(lists.flatten()) % len(lists):
            raise ValueError(f"`data.balance.column` must hold one vector for each image, got {name!r}.")
        yield lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1).astype(np.float32)


def _read(path: Path, name: str) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return read_table(path, columns=[name]).column(name)
    except (ArrowException, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`data.balance.column` must be in {str(path)!r}, got {name!r}: {reason}.") from error
