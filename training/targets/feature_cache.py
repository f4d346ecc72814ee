"""Teacher features computed once for fixed views, for budgets that cannot run the teachers at every step."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from core.checked_tensors import CheckedTensors, DamagedFileError, save_tensors
from core.files import TEMPORARY_PREFIX, remove_partial, write_file, write_text
from core.interruption import Interrupted
from core.machine import sharing_threads
from core.ranks import of_all_ranks, rank_and_count
from core.settings import differences, hash_of, with_defaults
from core.timing import ProgressBar
from training.data.image_table import Images
from training.recipe import DataRecipe, Recipe, RecipeError, TeacherRecipe, ViewsRecipe
from training.recipe_sections import RunOptions
from training.teachers.base import Teacher, by_network


DEFAULT_ROOT = Path("runs") / "cache"
DESCRIPTION = "cache.json"

_PLACES_OF_TEACHERS = ("source", "upsampler")
_PLACES_OF_DATA = ("source", "split", "column", "mixed_in")
_TEACHER_FIELDS = ("name", "kind", "options", *(key for key in RunOptions.model_fields if key != "upsampler"))
_DATA_FIELDS = ("image_size_px", "seed", "jpeg_drafts")


@dataclass(frozen=True)
class CacheContents:
    """What a cache is made from: any change makes it stale.

    Attributes:
        settings: What the recipe says of views, answers and how they are kept, as JSON values.
        state: What the recipe only points at: the images and the teachers' weights as they are now.
        places: Where it points to, which only decides the default folder.
    """

    settings: dict[str, Any]
    state: dict[str, Any]
    places: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, patch_size: int, images: Images, teachers: Mapping[str, nn.Module]) -> CacheContents:
        """Return what decides the views and the teachers' answers."""
        resolved = recipe.to_dict()
        return cls(
            {
                "teachers": [{key: entry[key] for key in _TEACHER_FIELDS} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in _DATA_FIELDS},
                "views": {"cache_format": recipe.views.cache_format},
                "num_images": len(images),
                "cells_per_side": resolved["data"]["image_size_px"] // patch_size,
            },
            {
                "images": images.fingerprint(),
                "weights": {name: weights_fingerprint(teacher) for name, teacher in teachers.items()},
            },
            {
                "teachers": [{key: entry[key] for key in _PLACES_OF_TEACHERS} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in _PLACES_OF_DATA},
            },
        )

    @property
    def teacher_names(self) -> list[str]:
        """Return the names of the teachers."""
        return [entry["name"] for entry in self.settings["teachers"]]

    @property
    def num_images(self) -> int:
        """Return how many images the cache has."""
        return self.settings["num_images"]

    @property
    def cells_per_side(self) -> int:
        """Return the student's patches along a view's side."""
        return self.settings["cells_per_side"]

    @property
    def views(self) -> ViewsRecipe:
        """Return how features are kept."""
        return ViewsRecipe(**self.settings["views"])

    @property
    def format(self) -> FeatureFormat:
        """Return what keeps features."""
        return FORMATS[self.views.cache_format]

    def to_dict(self) -> dict[str, Any]:
        """Return what the cache says of itself, as JSON values."""
        return {**self.settings, **self.state}

    def default_folder(self) -> Path:
        """Return a folder that no other settings share, nor images or teachers of another place.

        Settings that have their defaults do not count: one that is new in a later version moves no cache. Nor does the
        state, so that a cache whose images were changed is found, and refused.
        """
        teachers = [_without_defaults(entry, TeacherRecipe) for entry in self.settings["teachers"]]
        data = _without_defaults(self.settings["data"], DataRecipe)
        views = _without_defaults(self.settings["views"], ViewsRecipe)
        decisive = {**self.settings, "teachers": teachers, "data": data, "views": views}
        return DEFAULT_ROOT / hash_of({"settings": decisive, "places": self.places})[:16]


def check_contents(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a cache was made from something else than `contents`.

    Settings that it says nothing of came later, and had their defaults when it was made.
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


def weights_fingerprint(network: nn.Module) -> str:
    """Return how many numbers a network has, and a hash of their names and values."""
    count, state = 0, hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):
            count += tensor.numel()
            state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{count} numbers, state {state.hexdigest()[:16]}"


def _filled(contents: Any) -> Any:
    """Return contents with the defaults of settings that they say nothing of."""
    if not isinstance(contents, Mapping):
        return contents
    filled = with_defaults(Recipe, contents)
    return {key: filled[key] for key in ("views", *contents)}


def _without_defaults(settings: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    defaults = with_defaults(model, {})
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}


LEVELS = 255
"""Steps between the smallest and the largest of 8-bit numbers."""

Entries = dict[str, Tensor]
"""Named tensors of one teacher's features, which have a row for each image."""


class FeatureFormat(ABC):
    """Stores one teacher's features.

    Attributes:
        entries: Names of what it keeps of each image.
    """

    entries: tuple[str, ...] = ("features",)

    @abstractmethod
    def encode(self, features: Tensor) -> Entries:
        """Return what is kept of some images of a shard.

        Args:
            features: `(n, rows, cols, C)` float32.

        Raises:
            ValueError: If the format cannot hold a value; the message goes on after the teacher's name.
        """

    @abstractmethod
    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        """Return the features of one image of a shard, `(rows, cols, C)`."""


class HalfPrecision(FeatureFormat):
    """float16: 11 significant bits, values up to 65,504."""

    def encode(self, features: Tensor) -> Entries:
        return {"features": to_half(features)}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return entries["features"][row]


class EightBits(FeatureFormat):
    """8-bit integers between the smallest and the largest value of each channel of each image, in equal steps.

    So no step depends on other images, nothing is clipped, and a channel of small values loses no more than one of
    large ones. The error of a value is at most half a step, 1/510 of its channel's range in that image. Beside the
    integers, the smallest value and the step are kept in float32: 8 bytes for each channel of an image.
    """

    entries = ("features", "low", "step")

    def encode(self, features: Tensor) -> Entries:
        check_finite(features)
        low, high = features.amin((1, 2)), features.amax((1, 2))
        step = (high - low) / LEVELS
        place = (features - low[:, None, None]) / torch.where(step > 0, step, 1.0)[:, None, None]
        return {"features": place.round().clamp(0, LEVELS).to(torch.uint8), "low": low, "step": step}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return torch.addcmul(entries["low"][row], entries["features"][row].float(), entries["step"][row])


FORMATS: dict[str, FeatureFormat] = {"float16": HalfPrecision(), "int8": EightBits()}
"""By `views.cache_format`."""


def to_half(tensor: Tensor) -> Tensor:
    """Return a tensor in float16.

    Raises:
        ValueError: If a value is too large for it, or no number.
    """
    half = tensor.half()
    if not torch.isfinite(half).all():
        check_finite(tensor)
        raise ValueError("gives values that float16 cannot hold: use `views.cache_format=int8`")
    return half


def check_finite(tensor: Tensor) -> None:
    """Raise a `ValueError` if a value is infinite or no number."""
    if not torch.isfinite(tensor).all():
        raise ValueError("gives values that are not finite: look at its precision and its images")


def named_error(teacher: str, error: ValueError) -> RecipeError:
    """Return a format's error with the name of the teacher."""
    return RecipeError(f"Teacher {teacher!r} {error}.")


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


logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
"""Our choice: how long a request to stop is left waiting."""

_SUFFIX = ".lock"


@contextmanager
def writing_turn(path: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other run writes a file of a cache; then it may be there.

    What a run left that was killed meanwhile is removed. The system frees the lock of a killed run; the lock's own file
    goes as soon as the file itself is there, for from then on nobody writes it.

    Raises:
        Interrupted: If asked to stop while waiting.
    """
    lock = FileLock(f"{path}{_SUFFIX}")
    _acquire(lock, path, should_stop)
    try:
        remove_partial(path.parent, _scratch_prefix(path))
        yield
    finally:
        if path.is_file():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def clear_up(folder: Path) -> None:
    """Remove what is left of runs that were killed after a file was in its place, but before their turn had ended."""
    for leftover in folder.glob(f"*{_SUFFIX}"):
        path = leftover.with_suffix("")
        if not path.is_file():
            continue
        lock = FileLock(leftover)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # that run is still at it
            continue
        remove_partial(folder, _scratch_prefix(path))
        leftover.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path, should_stop: Callable[[], bool]) -> None:
    is_told = False
    while True:
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_LOOKS)
            return
        except Timeout:
            if should_stop():
                raise Interrupted("Stopped while another run writes the feature cache.") from None
        if not is_told:
            logger.warning("Another run is writing %s: waiting for it.", path)
            is_told = True


def _scratch_prefix(path: Path) -> str:
    return f"{TEMPORARY_PREFIX}{path.name}-"


class Forecast:
    """Says what a cache takes, from its second batch: the first also starts processes and sets kernels up.

    Args:
        folder: Where it is written.
        contents: What it is made from.
        num_missing: Images that it lacks, over all ranks.
    """

    def __init__(self, folder: Path, contents: CacheContents, num_missing: int) -> None:
        self.folder, self.contents, self.num_missing = folder, contents, num_missing
        self._first_ended: float | None = None
        self._is_told = False

    def after(self, batch: Entries, num_left: int) -> str | None:
        """Return the line, once: when a batch has shown how long one takes, or was the only one.

        Args:
            batch: What was computed.
            num_left: Images that this rank still has to compute.

        Raises:
            RecipeError: If the cache will not fit on the disk.
        """
        now, num_images = time.perf_counter(), len(batch["images"])
        if self._is_told:
            return None
        if self._first_ended is None and num_left:
            self._first_ended = now
            return None
        self._is_told = True
        num_bytes = sum(tensor.nbytes for tensor in batch.values()) / num_images * self.num_missing
        check_space(self.folder, num_bytes)
        contents, seconds = self.contents, 0.0
        if self._first_ended is not None:
            seconds = (now - self._first_ended) / num_images * num_left
        return (
            f"Feature cache {str(self.folder)!r}: {self.num_missing:,} of {contents.num_images:,} images are missing, "
            f"{len(contents.teacher_names)} teachers, {size_words(num_bytes)} in format "
            f"{contents.views.cache_format!r}, about {time_words(seconds)} to go."
        )


def check_space(folder: Path, needed: float) -> None:
    """Raise a RecipeError if so many bytes will not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RecipeError(
            f"The feature cache needs {size_words(needed)} more, but {str(folder)!r} has {size_words(free)} free. Make "
            "room, or give another `views.cache_dir`, a smaller `views.cache_format` or fewer `data.num_images`."
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


IMAGES_PER_FORWARD = 32
"""Images that teachers see at once; divides a shard. Our choice: keeps cores busy in little memory."""
IMAGES_PER_THREAD = 8
"""On a CPU these are divided among threads, each with at least so many. Our choice: an image takes a core 25.8 ms of
the demo's teachers in batches of 8 and 24.6 in batches of 32 (AMD EPYC with AVX512-BF16, 2026-11-26)."""


class FeatureCache:
    """A complete cache, opened for reading.

    Args:
        folder: Written by `write_feature_cache`.
        contents: What it must have been made from.

    Raises:
        RecipeError: If it was made from something else, or is incomplete or damaged.
    """

    def __init__(self, folder: Path, contents: CacheContents) -> None:
        check_contents(folder, contents)
        paths = shard_paths(folder, contents)
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise RecipeError(f"Feature cache {str(folder)!r} is incomplete: {missing[0]} is missing.")
        check_shards(folder, contents)
        self.contents, self.teacher_names, self.format = contents, contents.teacher_names, contents.format
        self._shards = read_shards(paths)
        self._features = [
            {name: entries_of(shard, name, self.format) for name in self.teacher_names} for shard in self._shards
        ]

    def __len__(self) -> int:
        return sum(len(shard["images"]) for shard in self._shards)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return views, `(n, 3, side, side)` uint8."""
        return self._read("images", indices)

    def answers(self, indices: Sequence[int]) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Return for each teacher its summary `(n, C)` or None, and features `(n, C, rows, cols)`, as they were kept.

        Summaries are float16, features float16 or, from int8, float32.
        """
        answers = {}
        for name in self.teacher_names:
            has_summary = f"{name}.summary" in self._shards[0]
            summary = self._read(f"{name}.summary", indices) if has_summary else None
            places = map(place_of, indices)
            maps = [self.format.decode(self._features[shard][name], row) for shard, row in places]
            answers[name] = (summary, torch.stack(maps).movedim(-1, 1))
        return answers

    def _read(self, key: str, indices: Sequence[int]) -> Tensor:
        places = map(place_of, indices)
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

    Other runs may do the same at the same time: what one of them is computing is waited for. A line says after the
    second batch, whose time tells something, what the whole takes; a disk that is too small for it is refused then.

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
        RecipeError: If the folder holds a cache of other contents or a damaged shard, or the disk is too small.
        WriteError: If a shard cannot be written.
        Interrupted: If asked to stop; complete shards stay.
    """
    _claim(folder, contents, should_stop)
    check_shards(folder, contents)
    paths = shard_paths(folder, contents)
    missing = [index for index in range(rank, len(paths), num_ranks) if not paths[index].is_file()]
    if not missing:  # a loader would start its processes all the same
        clear_up(folder)
        return
    rows = {index: shard_rows(index, contents.num_images) for index in missing}
    loader = DataLoader(
        Subset(images, list(itertools.chain(*rows.values()))),
        batch_size=IMAGES_PER_FORWARD,
        num_workers=num_workers,
    )
    total = sum(map(len, rows.values()))
    all_missing = [index for index, path in enumerate(paths) if not path.is_file()]
    forecast = Forecast(folder, contents, sum(len(shard_rows(each, contents.num_images)) for each in all_missing))
    with ProgressBar(total=total, desc="teacher features", unit="image", disable=rank > 0) as bar:
        batches = iter(loader)
        for index in missing:
            with writing_turn(paths[index], should_stop):
                own = itertools.islice(batches, -(-len(rows[index]) // IMAGES_PER_FORWARD))
                if paths[index].is_file():  # by another run, meanwhile
                    bar.update(sum(map(len, own)))
                    continue
                parts = list(_answered(own, answer, bar, should_stop, forecast))
                shard = join_batches(parts)
                check_space(folder, sum(tensor.nbytes for tensor in shard.values()))
                write_file(paths[index], lambda path, shard=shard: save_tensors(shard, path))
    clear_up(folder)


class TeacherAnswers:
    """Runs all teachers on whole views and lays their answers out as a shard's entries.

    A map whose sides are no multiple of the student's grid is resampled to the next one, so that windows of
    whole patches are exact crops.

    Args:
        teachers: By name.
        num_cells: The student's patches along a view's side.
        device: Where the teachers are.
        feature_format: How dense features are kept.
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], num_cells: int, device: torch.device, feature_format: FeatureFormat
    ) -> None:
        self.teachers, self.num_cells, self.device, self.format = teachers, num_cells, device, feature_format
        can_share = all(teacher.can_share_cores for teacher in teachers.values())
        most = max(1, IMAGES_PER_FORWARD // IMAGES_PER_THREAD)
        self._num_parts = min(torch.get_num_threads(), most) if can_share else 1
        self._pool = sharing_threads(self._num_parts, "teachers") if self._num_parts > 1 else None

    def __call__(self, images: Tensor) -> Entries:
        """Return `images` and each teacher's entries for `(n, 3, side, side)` uint8 images.

        Raises:
            RecipeError: If a teacher gives values that the format cannot hold.
        """
        if self._pool is None:
            return self._answer(images)
        parts = list(self._pool.map(self._answer, images.chunk(self._num_parts)))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @torch.no_grad()
    def _answer(self, images: Tensor) -> Entries:
        pixel_values = images.to(self.device).float() / 255
        entries = {"images": images}
        for names in by_network(self.teachers):
            readers = [self.teachers[name] for name in names]
            for name, (summary, maps) in zip(names, readers[0].answers(pixel_values, readers), strict=True):
                features = self._fit_cells(maps.float()).movedim(1, -1)
                try:
                    entries |= {f"{name}.{key}": value for key, value in self.format.encode(features).items()}
                    if summary is not None:
                        entries[f"{name}.summary"] = to_half(summary)
                except ValueError as error:
                    raise named_error(name, error) from error
        return entries

    def _fit_cells(self, features: Tensor) -> Tensor:
        grid = [-(-size // self.num_cells) * self.num_cells for size in features.shape[2:]]
        if grid == list(features.shape[2:]):
            return features
        return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _claim(folder: Path, contents: CacheContents, should_stop: Callable[[], bool]) -> None:
    """Write what the cache is made from into its folder, or check it where that is said already."""
    path = folder / DESCRIPTION
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with writing_turn(path, should_stop):
            if not path.is_file():
                write_text(path, json.dumps(contents.to_dict(), indent=2))
    check_contents(folder, contents)


def _answered(
    loader: Iterable[Tensor],
    answer: Callable[[Tensor], Entries],
    bar: ProgressBar,
    should_stop: Callable[[], bool],
    forecast: Forecast,
) -> Iterator[Entries]:
    for images in loader:
        if should_stop():
            raise Interrupted("Stopped while computing teacher features; the same command goes on from here.")
        entries = {key: value.cpu() for key, value in answer(images).items()}
        line = forecast.after(entries, num_left=(bar.total or 0) - bar.n - len(images))
        if line is not None:
            bar.say(line)
        yield entries
        bar.update(len(images))
