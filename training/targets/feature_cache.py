"""Teacher features computed once for fixed images, for budgets that cannot run the teachers at every step.

A cache is a folder: `cache.json` with everything that it was made from (`CacheContents`), and shards of safetensors
with the images and each teacher's summary and features, in float16. Several ranks and several runs may write one cache
at the same time (`write_feature_cache`); `FeatureCache` reads it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from modeling_radio.core.checked_tensors import DamagedFileError, load_tensors, save_tensors
from modeling_radio.core.files import TEMPORARY_PREFIX, cache_dir, remove_lock, remove_partial, write_file, write_text
from modeling_radio.core.interruption import Interrupted
from modeling_radio.core.machine import sharing_threads
from modeling_radio.core.ranks import of_all_ranks, rank_and_count
from modeling_radio.core.settings import differences, hash_of, with_defaults
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.image_table import Images
from modeling_radio.data.settings import DataRecipe
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, TeacherRecipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.base import Teacher, by_network


logger = logging.getLogger(__name__)

DESCRIPTION = "cache.json"

IMAGES_PER_SHARD = 512
"""Our choice: a few hundred MB a file at demo sizes, seconds of work that an interruption can lose."""

IMAGES_PER_FORWARD = 32
"""Images in one forward pass of the teachers; divides a shard. Our choice: keeps cores busy in little memory."""

IMAGES_PER_THREAD = 8
"""On a CPU these are divided among threads, each with at least so many. Our choice: an image takes a core 25.8 ms of
the demo's teachers in batches of 8 and 24.6 in batches of 32 (AMD EPYC with AVX512-BF16, 2026-11-26)."""

POLL_SECONDS = 1.0
"""Our choice: how long a request to stop waits at most."""

_LOCK_SUFFIX = ".lock"
_TEACHER_FIELDS = ("name", "kind", "options", *(key for key in RunOptions.model_fields if key != "upsampler"))
_DATA_FIELDS = ("image_size_px", "seed")

Entries = dict[str, Tensor]
"""Named tensors with a row for each image."""


@dataclass(frozen=True)
class CacheContents:
    """Everything that a cache is made from: any change makes it stale.

    Attributes:
        settings: The recipe's settings of images and teachers, as JSON values.
        state: Fingerprints of what the recipe only names: the images and the teachers' weights.
    """

    settings: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, patch_size: int, images: Images, teachers: Mapping[str, nn.Module]) -> CacheContents:
        """Return the contents of the cache for a recipe, its images and its teachers."""
        resolved = recipe.to_dict()
        return cls(
            {
                "teachers": [{key: entry[key] for key in _TEACHER_FIELDS} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in _DATA_FIELDS},
                "num_images": len(images),
                "cells_per_side": resolved["data"]["image_size_px"] // patch_size,
            },
            {
                "images": images.fingerprint(),
                "weights": {name: weights_fingerprint(teacher) for name, teacher in teachers.items()},
            },
        )

    @property
    def teacher_names(self) -> list[str]:
        """Names of the teachers."""
        return [entry["name"] for entry in self.settings["teachers"]]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.settings["num_images"]

    @property
    def patches_per_side(self) -> int:
        """The student's patches along a side of an image."""
        return self.settings["cells_per_side"]

    def to_dict(self) -> dict[str, Any]:
        """Return the description of the cache, as JSON values."""
        return {**self.settings, **self.state}

    def default_folder(self) -> Path:
        """Return the folder of these contents in the cache folder: other images or weights have another one.

        Settings at their defaults do not count: a setting that is new in a later version moves no cache.
        """
        decisive = {
            **self.settings,
            "teachers": [_without_defaults(entry, TeacherRecipe) for entry in self.settings["teachers"]],
            "data": _without_defaults(self.settings["data"], DataRecipe),
        }
        return cache_dir() / "features" / hash_of({"settings": decisive, "state": self.state})[:16]


def _without_defaults(settings: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    defaults = with_defaults(model, {})
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}


def weights_fingerprint(network: nn.Module) -> str:
    """Return the number of a network's parameters and buffers, and a hash of their names and values."""
    count, state = 0, hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):
            count += tensor.numel()
            state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{count} numbers, state {state.hexdigest()[:16]}"


def check_contents(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a cache was made from something else than `contents`.

    Settings that are missing in its description came later, and had their defaults when it was made.
    """
    path = folder / DESCRIPTION
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{str(folder)!r} is no feature cache: {path.name} is missing or broken. Delete the folder, or give "
            "another `views.cache_dir`."
        ) from error
    changed = differences(_filled(saved), _filled(contents.to_dict()))
    if changed:
        raise RecipeError(
            f"Feature cache {str(folder)!r} is stale ({'; '.join(changed)}). Delete it, or give another "
            "`views.cache_dir`."
        )


def _filled(description: Any) -> Any:
    """Return a description with the defaults of missing settings."""
    if not isinstance(description, Mapping):
        return description
    filled = with_defaults(Recipe, description)
    return {key: filled[key] for key in description}


def _to_half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        _check_finite(tensor)
        raise ValueError("gives values that float16 cannot hold: run it with `views.teachers=online`")
    return half


def _check_finite(tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError("gives values that are not finite: look at its precision and its images")


class TeacherOutputs:
    """Runs all teachers on whole images and returns the entries of a shard.

    A map whose sides are no multiple of the student's grid is resampled to the next multiple, so that windows of whole
    patches are exact crops.

    Args:
        teachers: By name.
        num_patches: The student's patches along a side of an image.
        device: Device of the teachers.
    """

    def __init__(self, teachers: Mapping[str, Teacher], num_patches: int, device: torch.device) -> None:
        self.teachers, self.num_patches, self.device = teachers, num_patches, device
        can_share = all(teacher.can_share_cores for teacher in teachers.values())
        most = max(1, IMAGES_PER_FORWARD // IMAGES_PER_THREAD)
        self._num_parts = min(torch.get_num_threads(), most) if can_share else 1
        self._pool = sharing_threads(self._num_parts, "teachers") if self._num_parts > 1 else None

    def __call__(self, images: Tensor) -> Entries:
        """Return `images` and each teacher's entries for `(n, 3, side, side)` uint8 images.

        Raises:
            RecipeError: If a teacher returns values that float16 cannot hold.
        """
        if self._pool is None:
            return self._run(images)
        return _joined(list(self._pool.map(self._run, images.chunk(self._num_parts))))

    @torch.no_grad()
    def _run(self, images: Tensor) -> Entries:
        pixel_values = images.to(self.device).float() / 255
        entries = {"images": images}
        for names in by_network(self.teachers):
            readers = [self.teachers[name] for name in names]
            outputs = readers[0].extract_features_for(pixel_values, readers)
            for name, (summary, maps) in zip(names, outputs, strict=True):
                features = self._fit_grid(maps.float()).movedim(1, -1)
                try:
                    entries[f"{name}.features"] = _to_half(features)
                    if summary is not None:
                        entries[f"{name}.summary"] = _to_half(summary)
                except ValueError as error:
                    raise RecipeError(f"Teacher {name!r} {error}.") from error
        return entries

    def _fit_grid(self, features: Tensor) -> Tensor:
        grid = [-(-size // self.num_patches) * self.num_patches for size in features.shape[2:]]
        if grid == list(features.shape[2:]):
            return features
        return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _joined(batches: Sequence[Entries]) -> Entries:
    return {key: torch.cat([batch[key] for batch in batches]).contiguous() for key in batches[0]}


def shard_paths(folder: Path, contents: CacheContents) -> list[Path]:
    """Return the paths of a cache's shards, present or not."""
    return [folder / f"shard_{n:05d}.safetensors" for n in range(math.ceil(contents.num_images / IMAGES_PER_SHARD))]


def _shard_rows(index: int, contents: CacheContents) -> range:
    """Return the images of a shard."""
    return range(index * IMAGES_PER_SHARD, min((index + 1) * IMAGES_PER_SHARD, contents.num_images))


def _read_shards(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Return the shards, mapped into memory; all ranks take part, each compares the sums of its share.

    Raises:
        DamagedFileError: On every rank, if a shard is not what was written.
    """
    rank, count = rank_and_count()
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
        damages = of_all_ranks([damage for damage in pool.map(_damage_of, paths[rank::count]) if damage])
    for path, reason in itertools.chain(*damages):
        raise DamagedFileError(path, reason)
    return [load_file(path) for path in paths]


def _damage_of(path: Path) -> tuple[Path, str] | None:
    try:
        load_tensors(path)
    except DamagedFileError as error:
        return path, error.reason
    return None


class FeatureCache:
    """A complete cache, opened for reading.

    Args:
        folder: Written by `write_feature_cache`.
        contents: The contents that it must have.

    Raises:
        RecipeError: If it has other contents, or is incomplete.
        DamagedFileError: If a shard is damaged.
    """

    def __init__(self, folder: Path, contents: CacheContents) -> None:
        check_contents(folder, contents)
        paths = shard_paths(folder, contents)
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise RecipeError(f"Feature cache {str(folder)!r} is incomplete: {missing[0]} is missing.")
        self.contents, self.teacher_names = contents, contents.teacher_names
        self._shards = _read_shards(paths)

    def __len__(self) -> int:
        return sum(len(shard["images"]) for shard in self._shards)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return images, `(n, 3, side, side)` uint8."""
        return self._read("images", indices)

    def outputs(self, indices: Sequence[int]) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Return each teacher's summary `(n, C)` or None, and its features `(n, C, rows, cols)`, in float16."""
        outputs = {}
        for name in self.teacher_names:
            has_summary = f"{name}.summary" in self._shards[0]
            summary = self._read(f"{name}.summary", indices) if has_summary else None
            outputs[name] = (summary, self._read(f"{name}.features", indices).movedim(-1, 1))
        return outputs

    def _read(self, key: str, indices: Sequence[int]) -> Tensor:
        rows = (divmod(index, IMAGES_PER_SHARD) for index in indices)
        return torch.stack([self._shards[shard][key][row] for shard, row in rows])


def write_feature_cache(
    folder: Path,
    contents: CacheContents,
    images: Images,
    compute: Callable[[Tensor], Entries],
    *,
    num_workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the missing shards of a cache.

    Other runs may do the same at the same time: a shard that one of them is computing is waited for. After the second
    batch, whose time is representative, a line forecasts size and time; a disk that is too small is refused then.

    Args:
        folder: The cache's folder.
        contents: Everything that the cache is made from.
        images: uint8 `(3, side, side)`.
        compute: From uint8 images `(n, 3, side, side)` to the entries of a shard, as `TeacherOutputs`.
        num_workers: Processes that decode images.
        rank: Rank of this process; each writes its share of the shards.
        num_ranks: Number of ranks.
        should_stop: Called between batches: whether to stop.

    Raises:
        RecipeError: If the folder holds a cache of other contents, or the disk is too small.
        WriteError: If a shard cannot be written.
        Interrupted: If asked to stop; complete shards stay.
    """
    description = folder / DESCRIPTION
    if not description.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with writing_turn(description, should_stop):
            if not description.is_file():
                write_text(description, json.dumps(contents.to_dict(), indent=2))
    check_contents(folder, contents)
    paths = shard_paths(folder, contents)
    all_missing = {index: _shard_rows(index, contents) for index, path in enumerate(paths) if not path.is_file()}
    missing = {index: rows for index, rows in all_missing.items() if index % num_ranks == rank}
    if not missing:  # a loader would start its processes all the same
        clear_up(folder)
        return
    subset = Subset(images, list(itertools.chain(*missing.values())))
    batches = iter(DataLoader(subset, batch_size=IMAGES_PER_FORWARD, num_workers=num_workers))
    forecast = Forecast(folder, contents, sum(map(len, all_missing.values())))
    with ProgressBar(total=len(subset), desc="teacher features", unit="image", disable=rank > 0) as bar:
        for index, rows in missing.items():
            with writing_turn(paths[index], should_stop):
                own = itertools.islice(batches, math.ceil(len(rows) / IMAGES_PER_FORWARD))
                if paths[index].is_file():  # by another run, meanwhile
                    bar.update(sum(map(len, own)))
                    continue
                shard = _joined(list(_computed(own, compute, bar, should_stop, forecast)))
                check_space(folder, sum(tensor.nbytes for tensor in shard.values()))
                write_file(paths[index], lambda path, shard=shard: save_tensors(shard, path))
    clear_up(folder)


def _computed(
    loader: Iterable[Tensor],
    compute: Callable[[Tensor], Entries],
    bar: ProgressBar,
    should_stop: Callable[[], bool],
    forecast: Forecast,
) -> Iterator[Entries]:
    for images in loader:
        if should_stop():
            raise Interrupted("Stopped while computing teacher features; the same command goes on from here.")
        entries = {key: value.cpu() for key, value in compute(images).items()}
        line = forecast.after(entries, num_left=(bar.total or 0) - bar.n - len(images))
        if line is not None:
            bar.say(line)
        yield entries
        bar.update(len(images))


@contextmanager
def writing_turn(path: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other run writes a file of a cache; it may exist then.

    Remains of a run that was killed meanwhile are removed. The system frees the lock of a killed run. The lock's own
    file is removed as soon as the file itself exists: from then on nobody writes it.

    Raises:
        Interrupted: If asked to stop while waiting.
    """
    lock = FileLock(f"{path}{_LOCK_SUFFIX}")
    has_warned = False
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=POLL_SECONDS)
            break
        if should_stop():
            raise Interrupted("Stopped while another run writes the feature cache.")
        if not has_warned:
            logger.warning("Another run is writing %s: waiting for it.", path)
            has_warned = True
    try:
        remove_partial(path.parent, f"{TEMPORARY_PREFIX}{path.name}-")
        yield
    finally:
        if path.is_file():
            remove_lock(lock)
        lock.release()


def clear_up(folder: Path) -> None:
    """Remove the remains of runs that were killed after a file was in place, but before their turn had ended."""
    for leftover in folder.glob(f"*{_LOCK_SUFFIX}"):
        path = leftover.with_suffix("")
        if not path.is_file():
            continue
        lock = FileLock(leftover)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # that run is still writing
            continue
        remove_partial(folder, f"{TEMPORARY_PREFIX}{path.name}-")
        remove_lock(lock)
        lock.release()


class Forecast:
    """Forecasts a cache's size and time from its second batch: the first also starts processes and sets kernels up.

    Args:
        folder: The cache's folder.
        contents: Everything that the cache is made from.
        num_missing: Missing images, over all ranks.
    """

    def __init__(self, folder: Path, contents: CacheContents, num_missing: int) -> None:
        self.folder, self.contents, self.num_missing = folder, contents, num_missing
        self._first_ended: float | None = None
        self._is_reported = False

    def after(self, batch: Entries, num_left: int) -> str | None:
        """Return the line, once: when a batch has shown how long one takes, or was the only one.

        Args:
            batch: The last batch.
            num_left: Images that this rank still has to compute.

        Raises:
            RecipeError: If the cache will not fit on the disk.
        """
        now, num_images = time.perf_counter(), len(batch["images"])
        if self._is_reported:
            return None
        if self._first_ended is None and num_left:
            self._first_ended = now
            return None
        self._is_reported = True
        num_bytes = sum(tensor.nbytes for tensor in batch.values()) / num_images * self.num_missing
        check_space(self.folder, num_bytes)
        contents, seconds = self.contents, 0.0
        if self._first_ended is not None:
            seconds = (now - self._first_ended) / num_images * num_left
        return (
            f"Feature cache {str(self.folder)!r}: {self.num_missing:,} of {contents.num_images:,} images are missing, "
            f"{len(contents.teacher_names)} teachers, {size_words(num_bytes)}, about {time_words(seconds)} to go."
        )


def check_space(folder: Path, needed: float) -> None:
    """Raise a RecipeError if so many bytes will not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RecipeError(
            f"The feature cache needs {size_words(needed)} more, but {str(folder)!r} has {size_words(free)} free. Make "
            "room, or give another `views.cache_dir` or fewer `data.num_images`."
        )


def size_words(num_bytes: float) -> str:
    """Return a size in the largest unit of which there is at least one."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"


def time_words(seconds: float) -> str:
    """Return a time in the largest of seconds, minutes and hours of which there are at least two."""
    for unit in ("seconds", "minutes"):
        if seconds < 120:
            return f"{seconds:.0f} {unit}"
        seconds /= 60
    return f"{seconds:,.1f} hours"
