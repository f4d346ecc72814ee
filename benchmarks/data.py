"""Times how many images a second reach a run, by format, number of data workers, and with JPEG drafts or without.

    python -m benchmarks.data [--images FOLDER] [--num-images 48] [--size 224] [--workers 0,2] [--formats folder]

JPEGs (by default the largest photographs of the demo's packages) are written as each format, and a run's loader reads,
decodes, crops and resizes them once for the student. The first batch, with which worker processes start, does not
count. `difference` is the mean of the absolute differences, in levels of 255, between a view with drafts and the same
without. Prints a table and writes it with date, machine and versions to `benchmarks/results/`.
"""

import io
import itertools
import math
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring.results import report
from foundation.command_line import Command
from foundation.fields import OneOf
from foundation.packages.fetching import cache_dir
from foundation.settings import Settings
from training.data.decoding import EncodedImage, UnusableImageError, image_size
from training.demo_kit.assets import load_demo_assets
from training.recipe import Recipe, load_recipe
from training.views.batches import Batch, BatchPlan
from training.views.images import build_training_images
from training.views.loading import PartitionStreams, build_view_loader
from training.views.regions import STUDENT, Sight


BATCH_SIZE = 8
"""Our choice: small, so that few images keep several workers busy."""

NUM_SHARDS = 4


def find_photographs(folder: Path | None, number: int) -> list[Path]:
    """Return the largest JPEGs of a folder, in pixels; by default of the packages that the demo fetches.

    Raises:
        ValueError: If there are fewer than two batches.
    """
    if folder is None:
        load_demo_assets("demo")
        folder = cache_dir() / "packages"
    paths = itertools.chain.from_iterable(folder.rglob(f"*.{suffix}") for suffix in ("jpg", "jpeg"))
    sizes = {path: size for path in paths if (size := _num_pixels(path))}
    if min(len(sizes), number) < 2 * BATCH_SIZE:
        raise ValueError(f"`images` must be a folder with at least {2 * BATCH_SIZE} JPEGs, got {str(folder)!r}.")
    return sorted(sizes, key=lambda path: (-sizes[path], str(path)))[:number]


def _num_pixels(path: Path) -> int:
    """Return how many pixels an image has, 0 for what is none."""
    try:
        return math.prod(image_size(EncodedImage(str(path), path)))
    except UnusableImageError:
        return 0


def write_folder(photographs: Sequence[Path], folder: Path) -> None:
    """Write a folder of files."""
    for number, path in enumerate(photographs):
        shutil.copyfile(path, folder / f"{number:05d}.jpg")


def write_parquet(photographs: Sequence[Path], folder: Path) -> None:
    """Write Parquet files."""
    import datasets

    for shard in range(NUM_SHARDS):
        rows = [{"bytes": path.read_bytes(), "path": None} for path in photographs[shard::NUM_SHARDS]]
        features = datasets.Features({"image": datasets.Image(decode=False)})
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(folder / f"{shard}.parquet")


def write_webdataset(photographs: Sequence[Path], folder: Path) -> None:
    """Write shards of webdataset."""
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number, path in enumerate(photographs[shard::NUM_SHARDS]):
                content = path.read_bytes()
                member = tarfile.TarInfo(f"{number:05d}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


FORMATS: dict[str, tuple[Callable[[Sequence[Path], Path], None], bool]] = {
    "folder": (write_folder, False),
    "parquet": (write_parquet, False),
    "parquet, streamed": (write_parquet, True),
    "webdataset, streamed": (write_webdataset, True),
}
"""By name how it is written, and whether it is read as a stream."""


def recipe_of(folder: Path, num_images: int, size_px: int, *, streams: bool, workers: int, drafts: bool) -> Recipe:
    """Return a recipe that reads a folder once in each epoch."""
    data = f"{{source: '{folder}', num_images: null, streaming: {streams}, num_workers: {workers}"
    return load_recipe(
        "demo",
        [
            f"data={data}, jpeg_drafts: {drafts}, shuffle_buffer: {num_images}}}",
            "views.teachers=online",
            f"partitions=[{{sizes_px: [{size_px}], batch_size: {BATCH_SIZE}}}]",
        ],
    )


def views_of(recipe: Recipe, num_steps: int) -> Iterator[Tensor]:
    """Yield what the student sees at each step, as a run's loader gives it."""
    patch_size = recipe.student.config["patch_size"]
    if recipe.data.streaming:
        images, number = PartitionStreams.open(recipe), None
    else:
        images = build_training_images(recipe.data, is_square=False)
        number = len(images)
    plan = BatchPlan(recipe, number, patch_size=patch_size)

    def sights(batch: Batch) -> list[Sight]:
        grid = batch.shapes[0].grid
        sizes = ((grid.rows * patch_size, grid.cols * patch_size),)
        numbers = batch.uniform("region", 4).tolist()
        return [Sight(tuple(each), grid, False, {STUDENT: (0, 0)}, {STUDENT: sizes}) for each in numbers]

    for _, (seen,) in build_view_loader(images, recipe).views(lambda: plan.steps(0, num_steps), sights):
        yield seen.pixels[STUDENT][0]


def images_per_second(views: Iterator[Tensor]) -> tuple[float, Tensor]:
    """Return how fast images come after the first batch, and all of them."""
    first = next(views)
    began = time.perf_counter()
    rest = list(views)
    return sum(map(len, rest)) / (time.perf_counter() - began), torch.cat([first, *rest])


def measure(settings: "DataBenchmark") -> list[dict[str, object]]:
    """Return one row for each format, number of workers, and use of drafts."""
    photographs = find_photographs(settings.images, settings.num_images)
    num_steps = len(photographs) // BATCH_SIZE
    rows = []
    for name in tqdm(settings.formats, desc="formats"):
        write, streams = FORMATS[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(photographs, folder)
            for workers in settings.workers:
                row: dict[str, object] = {"format": name, "workers": workers}
                seen = {}
                for drafts in (False, True):
                    recipe = recipe_of(
                        folder, len(photographs), settings.size, streams=streams, workers=workers, drafts=drafts
                    )
                    speed, seen[drafts] = images_per_second(views_of(recipe, num_steps))
                    row[f"images/s{', drafts' if drafts else ''}"] = round(speed, 1)
                row["difference"] = round((seen[True].float() - seen[False].float()).abs().mean().item(), 2)
                rows.append({**row, "size_px": settings.size, "images": len(photographs)})
    return rows


class DataBenchmark(Settings):
    """What shall be timed.

    Attributes:
        images: Folder with JPEGs; None for photographs of the demo's packages.
        num_images: How many of them, the largest ones.
        size: Side of the student's images, in pixels.
        workers: Numbers of data workers.
        formats: Names of formats; all by default.
    """

    images: Path | None = None
    num_images: int = Field(48, gt=0)
    size: int = Field(224, gt=0, multiple_of=16)
    workers: list[int] = [0, 2]
    formats: Annotated[list[str], OneOf(tuple(FORMATS))] = list(FORMATS)


COMMAND = Command("benchmarks.data", __doc__.partition("\n")[0], DataBenchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(lambda settings: report("data", "photographs", measure(settings)), arguments)


if __name__ == "__main__":
    sys.exit(main())
