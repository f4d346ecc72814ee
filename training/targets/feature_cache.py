"""Teacher features computed once for fixed views, for budgets that cannot run the teachers at every step.

A cache is a folder: `cache.json` says what it was made from, `shard_XXXXX.safetensors` hold for some images
`images` `(n, 3, side, side)` uint8 and, for each teacher, `NAME.summary` `(n, C)` and `NAME.features`
`(n, rows, cols, C)` in float16. Shards are memory-mapped: what is read is paged in by the system, and may
leave again.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from foundation.files import write_file, write_text
from foundation.interruption import Interrupted, ignore_stop_signals
from foundation.settings import differences, hash_of
from training.data.image_table import Images
from training.recipe import Recipe, RecipeError, RunOptions


IMAGES_PER_SHARD = 512
"""Our choice: a few hundred MB a file at demo sizes, seconds of work that an interruption can lose."""

IMAGES_PER_FORWARD = 32
"""Images that a teacher sees at once; divides a shard. Our choice: keeps cores busy in little memory."""

DEFAULT_ROOT = Path("runs") / "cache"


@dataclass(frozen=True)
class CacheContents:
    """What a cache is made from: any change makes it stale.

    Attributes:
        values: Everything that decides views and answers, as JSON values.
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, patch_size: int, num_images: int) -> "CacheContents":
        """Return what decides the views and the teachers' answers."""
        resolved = recipe.to_dict()
        teacher_fields = ("name", "kind", "source", "options", *RunOptions.model_fields)
        data_fields = ("source", "split", "column", "mixed_in", "image_size_px", "seed")
        return cls(
            {
                "teachers": [{key: entry[key] for key in teacher_fields} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in data_fields},
                "num_images": num_images,
                "cells_per_side": resolved["data"]["image_size_px"] // patch_size,
            }
        )

    def default_folder(self) -> Path:
        """Return a folder that no other contents share."""
        return DEFAULT_ROOT / hash_of(self.values)[:16]


class FeatureCache:
    """A complete cache, opened for reading.

    Args:
        folder: Written by `write_feature_cache`.
        contents: What it must have been made from.

    Raises:
        RecipeError: If it was made from something else, or is incomplete.
    """

    def __init__(self, folder: Path, contents: CacheContents) -> None:
        check_contents(folder, contents)
        paths = shard_paths(folder, contents)
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise RecipeError(f"Feature cache {str(folder)!r} is incomplete: {missing[0]} is missing.")
        self.teacher_names = [entry["name"] for entry in contents.values["teachers"]]
        self._shards = [load_file(path) for path in paths]

    def __len__(self) -> int:
        return sum(len(shard["images"]) for shard in self._shards)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return views, `(n, 3, side, side)` uint8."""
        return self._read("images", indices)

    def answers(self, indices: Sequence[int]) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Return for each teacher its summary `(n, C)` or None, and features `(n, C, rows, cols)`, float16."""
        answers = {}
        for name in self.teacher_names:
            has_summary = f"{name}.summary" in self._shards[0]
            summary = self._read(f"{name}.summary", indices) if has_summary else None
            answers[name] = (summary, self._read(f"{name}.features", indices).movedim(-1, 1))
        return answers

    def _read(self, key: str, indices: Sequence[int]) -> Tensor:
        places = (divmod(index, IMAGES_PER_SHARD) for index in indices)
        return torch.stack([self._shards[shard][key][row] for shard, row in places])


def write_feature_cache(
    folder: Path,
    contents: CacheContents,
    images: Images,
    answer: Callable[[Tensor], dict[str, Tensor]],
    *,
    num_workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute what is missing of a cache; shards that are there already are kept.

    Args:
        folder: Where to write.
        contents: What the cache is made from.
        images: uint8 `(3, side, side)`.
        answer: From uint8 images `(n, 3, side, side)` to the entries of a shard, as `TeacherAnswers`.
        num_workers: Processes that decode images.
        rank: Rank of this process; each writes its share of the shards.
        num_ranks: Number of ranks.
        should_stop: Called between batches: whether to stop.

    Raises:
        RecipeError: If the folder holds a cache of other contents, or the disk is too small.
        WriteError: If a shard cannot be written.
        Interrupted: If asked to stop; complete shards stay.
    """
    if (folder / "cache.json").is_file():
        check_contents(folder, contents)
    elif rank == 0:
        write_text(folder / "cache.json", json.dumps(contents.values, indent=2))
    paths = shard_paths(folder, contents)
    missing = [index for index in range(rank, len(paths), num_ranks) if not paths[index].is_file()]
    rows = {index: _shard_rows(index, contents.values["num_images"]) for index in missing}
    loader = DataLoader(
        Subset(images, list(itertools.chain(*rows.values()))),
        batch_size=IMAGES_PER_FORWARD,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
    )
    total = sum(map(len, rows.values()))
    with tqdm(total=total, desc="teacher features", unit="image", disable=rank > 0 or not missing) as bar:
        batches = _answered(loader, answer, bar, should_stop)
        for place, index in enumerate(missing):
            parts = list(itertools.islice(batches, -(-len(rows[index]) // IMAGES_PER_FORWARD)))
            shard = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
            _check_space(folder, shard, len(missing) - place)
            write_file(paths[index], lambda path, shard=shard: save_file(shard, path))


class TeacherAnswers:
    """Runs all teachers on whole views and lays their answers out as a shard's entries.

    A map whose sides are no multiple of the student's grid is resampled to the next one, so that windows of
    whole patches are exact crops.

    Args:
        teachers: By name.
        num_cells: The student's patches along a view's side.
        device: Where the teachers are.
    """

    def __init__(self, teachers: Mapping[str, nn.Module], num_cells: int, device: torch.device) -> None:
        self.teachers, self.num_cells, self.device = teachers, num_cells, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return `images` and each teacher's entries for `(n, 3, side, side)` uint8 images."""
        pixel_values = images.to(self.device).float() / 255
        entries = {"images": images}
        for name, teacher in self.teachers.items():
            output = teacher(pixel_values)
            features = self._fit_cells(output.features.float()).movedim(1, -1)
            entries[f"{name}.features"] = _half(name, features)
            if output.summary is not None:
                entries[f"{name}.summary"] = _half(name, output.summary)
        return entries

    def _fit_cells(self, features: Tensor) -> Tensor:
        grid = [-(-size // self.num_cells) * self.num_cells for size in features.shape[2:]]
        if grid == list(features.shape[2:]):
            return features
        return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def check_contents(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a cache was made from something else than `contents`."""
    try:
        saved = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RecipeError(f"{str(folder)!r} is no feature cache: cache.json is missing or broken.") from error
    changed = differences(saved, contents.values)
    if changed:
        raise RecipeError(
            f"Feature cache {str(folder)!r} is stale ({'; '.join(changed)}): delete it, or give another "
            "`views.cache_dir`."
        )


def shard_paths(folder: Path, contents: CacheContents) -> list[Path]:
    """Return where the shards of a cache lie, present or not."""
    num_shards = -(-contents.values["num_images"] // IMAGES_PER_SHARD)
    return [folder / f"shard_{index:05d}.safetensors" for index in range(num_shards)]


def _shard_rows(index: int, num_images: int) -> range:
    return range(index * IMAGES_PER_SHARD, min((index + 1) * IMAGES_PER_SHARD, num_images))


def _answered(
    loader: Iterable[Tensor],
    answer: Callable[[Tensor], dict[str, Tensor]],
    bar: tqdm,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Tensor]]:
    for images in loader:
        if should_stop():
            raise Interrupted("Stopped while computing teacher features; the same command goes on from here.")
        yield {key: value.cpu() for key, value in answer(images).items()}
        bar.update(len(images))


def _check_space(folder: Path, shard: dict[str, Tensor], num_shards_left: int) -> None:
    """Raise a RecipeError early if the shards to come will not fit on the disk."""
    needed = sum(tensor.nbytes for tensor in shard.values()) * num_shards_left
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RecipeError(
            f"The feature cache needs up to {needed / 1e9:.1f} GB, but {str(folder)!r} has {free / 1e9:.1f} GB free: "
            "give another `views.cache_dir`, or fewer `data.num_images`."
        )


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise RecipeError(f"Teacher {name!r} gives values that float16 cannot hold: use `views.teachers=online`.")
    return half
