"""The files of a feature cache: where they lie, which images and entries they hold, whether they are whole."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from foundation.checked_tensors import CheckedTensors, DamagedFileError
from foundation.ranks import of_all_ranks, rank_and_count
from training.recipe import RecipeError
from training.targets.cache.contents import CacheContents
from training.targets.cache.formats import Entries, FeatureFormat


IMAGES_PER_SHARD = 512
"""Our choice: a few hundred MB a file at demo sizes, seconds of work that an interruption can lose."""


def entries_of(shard: Mapping[str, Tensor], teacher: str, feature_format: FeatureFormat) -> Entries:
    """Return what a shard holds of a teacher's features, by the names that the format gives them."""
    return {key: shard[f"{teacher}.{key}"] for key in feature_format.entries}


def shard_paths(folder: Path, contents: CacheContents) -> list[Path]:
    """Return where the shards of a cache lie, present or not."""
    return [folder / f"shard_{index:05d}.safetensors" for index in range(num_shards(contents.num_images))]


def check_shards(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a shard that is there is cut, damaged, or not laid out as the first one."""
    layouts: list[dict[str, tuple]] = []
    for index, path in enumerate(shard_paths(folder, contents)):
        if path.is_file():
            layouts.append(_layout(path, len(shard_rows(index, contents.num_images)), contents))
            if layouts[-1] != layouts[0]:
                raise _damaged(path, "its entries are not those of the other shards")


def _layout(path: Path, num_rows: int, contents: CacheContents) -> dict[str, tuple]:
    """Return type and shape of a shard's entries but for the number of images, which is checked."""
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            layout = {key: (part.get_dtype(), *part.get_shape()) for key, part in slices.items()}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    needed = {"images", *(f"{name}.{key}" for name in contents.teacher_names for key in contents.format.entries)}
    if not needed <= layout.keys() or any(shape[1:2] != (num_rows,) for shape in layout.values()):
        raise _damaged(path, f"it must hold {num_rows} rows of {sorted(needed)}")
    return {key: (shape[0], *shape[2:]) for key, shape in layout.items()}


def _damaged(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"Shard {str(path)!r} of the feature cache cannot be used: {reason.rstrip('.')}. Delete it: the same command "
        "computes it again."
    )


def read_shards(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Return what shards hold, mapped into memory; all ranks take part, each compares checksums of its share.

    Raises:
        RecipeError: On every rank, if a shard holds something else than was written.
    """
    rank, count = rank_and_count()
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
        damages = of_all_ranks([damage for damage in pool.map(_damage_of, paths[rank::count]) if damage])
    for path, reason in itertools.chain(*damages):
        raise _damaged(path, reason)
    return [load_file(path) for path in paths]


def _damage_of(path: Path) -> tuple[Path, str] | None:
    try:
        CheckedTensors(path).read_all()
    except DamagedFileError as error:
        return path, error.reason
    return None


def shard_rows(index: int, num_images: int) -> range:
    """Return which images a shard holds."""
    return range(index * IMAGES_PER_SHARD, min((index + 1) * IMAGES_PER_SHARD, num_images))


def num_shards(num_images: int) -> int:
    """Return how many shards hold so many images."""
    return -(-num_images // IMAGES_PER_SHARD)


def place_of(image: int) -> tuple[int, int]:
    """Return the shard of an image, and its row there."""
    return divmod(image, IMAGES_PER_SHARD)


def join_batches(batches: Sequence[Entries]) -> Entries:
    """Return a shard, from what was computed for its images, one batch after the other."""
    return {key: torch.cat([batch[key] for batch in batches]).contiguous() for key in batches[0]}
