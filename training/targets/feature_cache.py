"""Teacher features computed once for fixed views, for budgets that cannot run the teachers at every step.

A cache is a folder: `cache.json` says what it was made from, `shard_XXXXX.safetensors` hold for some images
`images` `(n, 3, side, side)` uint8 and, for each teacher, `NAME.summary` `(n, C)` and `NAME.features`
`(n, rows, cols, C)` in float16. Shards are memory-mapped: what is read is paged in by the system, and may
leave again. While a file is written, a lock beside it keeps other runs from writing it too.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from foundation.files import write_file, write_text
from foundation.interruption import Interrupted, ignore_stop_signals
from foundation.machine.timing import ProgressBar
from training.data.image_table import Images
from training.recipe import RecipeError
from training.targets.cache_contents import DESCRIPTION, CacheContents, check_contents
from training.targets.cache_lock import clear_up, writing_turn
from training.teachers.base import Teacher


IMAGES_PER_SHARD = 512
"""Our choice: a few hundred MB a file at demo sizes, seconds of work that an interruption can lose."""

IMAGES_PER_FORWARD = 32
"""Images that a teacher sees at once; divides a shard. Our choice: keeps cores busy in little memory."""


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
        self.teacher_names = contents.teacher_names
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

    Other runs may do the same at the same time: what one of them is computing is waited for.

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
    rows = {index: _shard_rows(index, contents.num_images) for index in missing}
    loader = DataLoader(
        Subset(images, list(itertools.chain(*rows.values()))),
        batch_size=IMAGES_PER_FORWARD,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
    )
    total = sum(map(len, rows.values()))
    with ProgressBar(total=total, desc="teacher features", unit="image", disable=rank > 0) as bar:
        batches = iter(loader)
        for place, index in enumerate(missing):
            with writing_turn(paths[index], should_stop):
                own = itertools.islice(batches, -(-len(rows[index]) // IMAGES_PER_FORWARD))
                if paths[index].is_file():  # by another run, meanwhile
                    bar.update(sum(map(len, own)))
                    continue
                parts = list(_answered(own, answer, bar, should_stop))
                shard = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
                _check_space(folder, shard, len(missing) - place)
                write_file(paths[index], lambda path, shard=shard: save_file(shard, path))
    clear_up(folder)


class TeacherAnswers:
    """Runs all teachers on whole views and lays their answers out as a shard's entries.

    A map whose sides are no multiple of the student's grid is resampled to the next one, so that windows of
    whole patches are exact crops.

    Args:
        teachers: By name.
        num_cells: The student's patches along a view's side.
        device: Where the teachers are.
    """

    def __init__(self, teachers: Mapping[str, Teacher], num_cells: int, device: torch.device) -> None:
        self.teachers, self.num_cells, self.device = teachers, num_cells, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return `images` and each teacher's entries for `(n, 3, side, side)` uint8 images."""
        pixel_values = images.to(self.device).float() / 255
        entries = {"images": images}
        for name, teacher in self.teachers.items():
            output = teacher.answer(pixel_values)
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


def shard_paths(folder: Path, contents: CacheContents) -> list[Path]:
    """Return where the shards of a cache lie, present or not."""
    num_shards = -(-contents.num_images // IMAGES_PER_SHARD)
    return [folder / f"shard_{index:05d}.safetensors" for index in range(num_shards)]


def check_shards(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a shard that is there is cut, damaged, or not laid out as the first one."""
    layouts: list[dict[str, tuple]] = []
    for index, path in enumerate(shard_paths(folder, contents)):
        if path.is_file():
            layouts.append(_layout(path, len(_shard_rows(index, contents.num_images)), contents))
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
    needed = {"images", *(f"{name}.features" for name in contents.teacher_names)}
    if not needed <= layout.keys() or any(shape[1:2] != (num_rows,) for shape in layout.values()):
        raise _damaged(path, f"it must hold {num_rows} rows of {sorted(needed)}")
    return {key: (dtype, *shape) for key, (dtype, _, *shape) in layout.items()}


def _damaged(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"Shard {str(path)!r} of the feature cache cannot be used: {reason.rstrip('.')}. Delete it: the same command "
        "computes it again."
    )


def _claim(folder: Path, contents: CacheContents, should_stop: Callable[[], bool]) -> None:
    """Write what the cache is made from into its folder, or check it where that is said already."""
    path = folder / DESCRIPTION
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with writing_turn(path, should_stop):
            if not path.is_file():
                write_text(path, json.dumps(contents.to_dict(), indent=2))
    check_contents(folder, contents)


def _shard_rows(index: int, num_images: int) -> range:
    return range(index * IMAGES_PER_SHARD, min((index + 1) * IMAGES_PER_SHARD, num_images))


def _answered(
    loader: Iterable[Tensor],
    answer: Callable[[Tensor], dict[str, Tensor]],
    bar: ProgressBar,
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
            f"The feature cache needs up to {_size_words(needed)} more, but {str(folder)!r} has {_size_words(free)} "
            "free. Make room, or give another `views.cache_dir` or fewer `data.num_images`."
        )


def _size_words(num_bytes: float) -> str:
    """Return a size in the largest unit of which there is at least one."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise RecipeError(f"Teacher {name!r} gives values that float16 cannot hold: use `views.teachers=online`.")
    return half
