"""Teacher features computed once for fixed views, for budgets that cannot run the teachers at every step.

A cache is a folder: `cache.json` says what it was made from, `shard_XXXXX.safetensors` hold for some images
`images` `(n, 3, side, side)` uint8 and, for each teacher, `NAME.summary` `(n, C)` in float16 and the entries of a
`FeatureFormat`, `NAME.features` and others. Shards are memory-mapped: what is read is paged in by the system, and may
leave again. While a file is written, a lock beside it keeps other runs from writing it too. The folder may be moved or
copied to another machine: it names no place, and says what its images and weights must be.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from foundation.checked_tensors import save_tensors
from foundation.files import write_file, write_text
from foundation.interruption import Interrupted
from foundation.machine.threads import sharing_threads
from foundation.machine.timing import ProgressBar
from training.data.image_table import Images
from training.recipe import RecipeError
from training.targets.cache.contents import DESCRIPTION, CacheContents, check_contents
from training.targets.cache.forecast import Forecast, check_space
from training.targets.cache.formats import Entries, FeatureFormat, named_error, to_half
from training.targets.cache.lock import clear_up, writing_turn
from training.targets.cache.shards import (
    check_shards,
    entries_of,
    join_batches,
    place_of,
    read_shards,
    shard_paths,
    shard_rows,
)
from training.teachers.base import Teacher, by_network


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
