"""From files to the inputs of networks: the image processor and a run's loader.

The image processor is compared with transformers' and timm's at equal work, from PIL images to pixels in [0, 1]: all
resize to one exact size with the antialiased bicubic filter and rescale, none normalizes. Smooth noise replaces
photographs of that size.

The loader reads, decodes, crops and resizes JPEGs of each format once; the first batch, with which worker processes
start, does not count.
"""

import io
import itertools
import math
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring import MeasuringSettings, Row, Turns, report, take_turns
from modeling_radio import RadioImageProcessor
from modeling_radio.core.files import cache_dir
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, image_size
from modeling_radio.data.training_images import build_training_images
from modeling_radio.demo.assets import load_demo_assets
from modeling_radio.training.recipes.recipe import Recipe, load_recipe
from modeling_radio.training.views.crops import STUDENT, CropSpec
from modeling_radio.training.views.loaders import PartitionStreams, build_view_loader
from modeling_radio.training.views.plan import BatchPlan, PlannedBatch


OURS = "ours"
COARSENESS = 16
"""Distance in pixels between independent random ones. Our choice: neighbors are similar as in photographs."""
PROCESSED_BATCH = 16
BATCH_SIZE = 8
"""Our choice: small, so that few images keep several workers busy."""
NUM_SHARDS = 4
WORKERS = (0, 2)
LOADED_PX = 224


def run(settings: MeasuringSettings) -> None:
    """Measure and report the image processor and the loader."""
    pace = {"min_rounds": 2} if settings.quick else {"min_rounds": 5, "budget_seconds": 4.0}
    sizes = [size for size in settings.chosen_sizes if size <= 512]
    report(settings, "data", "preprocessing", "bicubic", measure_processors(sizes, pace))
    photographs = find_photographs(settings.photographs, 16 if settings.quick else 48)
    report(settings, "data", "data", "photographs", measure_loader(photographs))


def draw_image(width: int, height: int, seed: int) -> Image.Image:
    """Return an image of smooth noise."""
    side = (-(-height // COARSENESS), -(-width // COARSENESS), 3)
    noise = np.random.default_rng(seed).integers(0, 256, side, dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def draw_images(batch_size: int) -> dict[str, list[Image.Image]]:
    """Return inputs of the processors by name: a large image, a small one, batches of one size and of eight."""
    equal = [draw_image(640, 480, number) for number in range(batch_size)]
    mixed = [draw_image(320 + 96 * (number % 8), 720 - 48 * (number % 8), number) for number in range(batch_size)]
    return {
        "one of 4000 x 3000": [draw_image(4000, 3000, 0)],
        "one of 640 x 480": equal[:1],
        f"{batch_size} of 640 x 480": equal,
        f"{batch_size} of eight sizes": mixed,
    }


def build_processors(size_px: int) -> dict[str, Callable[[list[Image.Image]], Tensor]]:
    """Return by name functions from images to a batch `(images, 3, size_px, size_px)`."""
    size = {"height": size_px, "width": size_px}
    equal_work: dict[str, Any] = {"size": size, "resample": Image.Resampling.BICUBIC, "do_normalize": False}
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0, "crop_mode": "squash"}
    transform = create_transform((3, size_px, size_px), interpolation="bicubic", **plain)

    def processor(built: Any, **options: Any) -> Callable[[list[Image.Image]], Tensor]:
        return lambda images: built(images, return_tensors="pt", **options)["pixel_values"]

    torchvision = transformers.SiglipImageProcessor(**equal_work)
    return {
        OURS: processor(RadioImageProcessor(size=size)),
        "transformers, torchvision": processor(torchvision),
        "transformers, torchvision, grouped": processor(torchvision, disable_grouping=False),
        "transformers, PIL": processor(transformers.SiglipImageProcessorPil(**equal_work)),
        "timm": lambda images: torch.stack([transform(image) for image in images]),
    }


def measure_processors(sizes: Sequence[int], pace: Mapping[str, Any], batch_size: int = PROCESSED_BATCH) -> list[Row]:
    """Return one row for each size and kind of input."""
    rows = []
    for size_px in sizes:
        processors = build_processors(size_px)
        for name, images in tqdm(draw_images(batch_size).items(), desc=f"processors, {size_px} px"):
            turns = take_turns({each: partial(call, images) for each, call in processors.items()}, **pace)
            rows.append({"size, px": size_px, "images": name, **processor_row(turns)})
    return rows


def processor_row(turns: Turns[str]) -> Row:
    """Return milliseconds of each processor, and the speed of ours relative to each of the others."""
    others = [name for name in turns.seconds if name != OURS]
    return {f"{name}, ms": turns.milliseconds(name) for name in turns.seconds} | {
        f"times as fast as {name}": str(turns.times_as_fast(OURS, name)) for name in others
    }


def find_photographs(folder: Path | None, number: int) -> list[Path]:
    """Return the JPEGs with the most pixels of a folder, by default of the packages of the demo.

    Raises:
        ValueError: If there are fewer than two batches.
    """
    if folder is None:
        load_demo_assets("demo")
        folder = cache_dir() / "packages"
    paths = itertools.chain.from_iterable(folder.rglob(f"*.{suffix}") for suffix in ("jpg", "jpeg"))
    sizes = {path: size for path in paths if (size := _num_pixels(path))}
    if min(len(sizes), number) < 2 * BATCH_SIZE:
        raise ValueError(
            f"`photographs` must be a folder with at least {2 * BATCH_SIZE} JPEGs, got {str(folder)!r} with "
            f"{len(sizes)}. Name another folder."
        )
    return sorted(sizes, key=lambda path: (-sizes[path], str(path)))[:number]


def _num_pixels(path: Path) -> int:
    """Return the number of pixels of an image, 0 for another file."""
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

    features = datasets.Features({"image": datasets.Image(decode=False)})
    for shard in range(NUM_SHARDS):
        rows = [{"bytes": path.read_bytes(), "path": None} for path in photographs[shard::NUM_SHARDS]]
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
"""Formats by name: the function that writes it, and whether it is read as a stream."""


def recipe_of(folder: Path, num_images: int, size_px: int, *, streams: bool, workers: int) -> Recipe:
    """Return a recipe that reads a folder once in each epoch."""
    data = f"{{source: '{folder}', num_images: null, streaming: {streams}, num_workers: {workers}"
    return load_recipe(
        "demo",
        [
            f"data={data}, shuffle_buffer: {num_images}}}",
            "views.teachers=online",
            f"partitions=[{{sizes_px: [{size_px}], batch_size: {BATCH_SIZE}}}]",
        ],
    )


def views_of(recipe: Recipe, num_steps: int) -> Iterator[Tensor]:
    """Yield the student's pixels of each step from a run's loader."""
    patch_size = recipe.student.config["patch_size"]
    if recipe.data.streaming:
        images, number = PartitionStreams.open(recipe), None
    else:
        images = build_training_images(recipe.data, is_square=False)
        number = len(images)
    plan = BatchPlan(recipe, number, patch_size=patch_size)

    def crop_specs(batch: PlannedBatch) -> list[CropSpec]:
        grid = batch.shapes[0].grid
        sizes = ((grid.rows * patch_size, grid.cols * patch_size),)
        numbers = batch.uniform("region", 4).tolist()
        return [
            CropSpec(tuple(each), recipe.views.crop_scale, grid, False, {STUDENT: (0, 0)}, {STUDENT: sizes})
            for each in numbers
        ]

    for _, (crops,) in build_view_loader(images, recipe).views(lambda: plan.steps(0, num_steps), crop_specs):
        yield crops.pixels[STUDENT][0]


def images_per_second(views: Iterator[Tensor]) -> tuple[float, Tensor]:
    """Return the number of images per second after the first batch, and all images."""
    first = next(views)
    began = time.perf_counter()
    rest = list(views)
    return sum(map(len, rest)) / (time.perf_counter() - began), torch.cat([first, *rest])


def measure_loader(
    photographs: Sequence[Path], size_px: int = LOADED_PX, workers: Sequence[int] = WORKERS
) -> list[Row]:
    """Return one row for each format and number of workers."""
    rows, number = [], len(photographs)
    for name, (write, streams) in tqdm(FORMATS.items(), desc="formats"):
        with tempfile.TemporaryDirectory() as folder:
            write(photographs, Path(folder))
            for count in workers:
                recipe = recipe_of(Path(folder), number, size_px, streams=streams, workers=count)
                speed, _ = images_per_second(views_of(recipe, number // BATCH_SIZE))
                row: Row = {"format": name, "workers": count, "images/s": round(speed, 1)}
                rows.append({**row, "size_px": size_px, "images": number})
    return rows
