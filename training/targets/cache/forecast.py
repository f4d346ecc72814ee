"""What a feature cache will take, told while its first images are computed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from training.recipe import RecipeError
from training.targets.cache.contents import CacheContents
from training.targets.cache.formats import Entries


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
